// Relies on the receipt of another program instead of doing that program's work again.
//
// Input:   the other program's image id (32 bytes), then its journal.
// Journal: the image id, then the SHA-256 of that journal (32 bytes each): who verifies this program's proof knows
//          that the other one ended well with that journal.
// The job must name the other program's receipt in spec.assumptions.
#include "../runtime/runtime.h"

enum { MAXIMAL_JOURNAL_BYTES = 65536 };

void guest_main(void) {
  static u32 image_id[DIGEST_BYTES / 4];
  static u32 journal[MAXIMAL_JOURNAL_BYTES / 4 + 1];
  u8 journal_digest[DIGEST_BYTES];
  read_exactly(image_id, DIGEST_BYTES);
  size_t length = read_input(journal, sizeof journal);
  if (length > MAXIMAL_JOURNAL_BYTES) {
    panic("the other program's journal is longer than 65536 bytes");
  }
  assume_receipt((const u8 *)image_id, journal, length);
  Sha256 hasher;
  sha256_start(&hasher);
  sha256_add(&hasher, journal, length);
  sha256_finish(&hasher, journal_digest);
  commit(image_id, DIGEST_BYTES);
  commit(journal_digest, DIGEST_BYTES);
}

// Hashes its whole input with SHA-256.
//
// Input:   any bytes.
// Journal: the number of bytes as 8 bytes little-endian, then the digest (32 bytes). The length is counted by the
//          program from what it hashed, so that neither can be told from anything but the bytes themselves.
#include "../runtime/runtime.h"

static u32 buffer[1024];

void guest_main(void) {
  Sha256 hasher;
  u8 digest[DIGEST_BYTES];
  size_t got;
  sha256_start(&hasher);
  do {
    got = read_input(buffer, sizeof buffer);
    sha256_add(&hasher, buffer, got);
  } while (got == sizeof buffer);
  u64 length = hasher.total;
  sha256_finish(&hasher, digest);
  commit(&length, sizeof length);
  commit(digest, sizeof digest);
}

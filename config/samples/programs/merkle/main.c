// Updates leaves of a Merkle tree with a keyed hash: proves that the new root follows from the old one.
//
// Input:   depth (u32 little-endian, 1 to 32), number of updates (u32), key (32 bytes), old root (32 bytes);
//          then for each update: index of the leaf (u32), old value (32 bytes), new value (32 bytes) and the
//          siblings from the leaf up (32 bytes each), as they are when that update is made.
// Journal: SHA-256 of the key, old root, new root (32 bytes each), number of updates (u32 little-endian).
//
// The keyed hash is SHA-256 over a first block of key, kind (0 leaf, 1 node) and zeros, and then the message. As
// messages of a kind have one length, no message is the beginning of another.
#include "../runtime/runtime.h"

enum { LEAF = 0, NODE = 1, MAXIMAL_DEPTH = 32 };

typedef u32 Digest[DIGEST_BYTES / 4];

static u32 key_blocks[2][BLOCK_BYTES / 4];

static void keyed_hash(int kind, const Digest left, const Digest right, Digest result) {
  Sha256 hasher;
  sha256_start(&hasher);
  sha256_add(&hasher, key_blocks[kind], BLOCK_BYTES);
  sha256_add(&hasher, left, DIGEST_BYTES);
  if (right != 0) {
    sha256_add(&hasher, right, DIGEST_BYTES);
  }
  sha256_finish(&hasher, (u8 *)result);
}

static void root_of(u32 index, u32 depth, const Digest value, Digest *siblings, Digest root) {
  Digest node;
  keyed_hash(LEAF, value, 0, node);
  for (u32 level = 0; level < depth; level++, index >>= 1) {
    Digest parent;
    if (index & 1) {
      keyed_hash(NODE, siblings[level], node, parent);
    } else {
      keyed_hash(NODE, node, siblings[level], parent);
    }
    memcpy(node, parent, DIGEST_BYTES);
  }
  memcpy(root, node, DIGEST_BYTES);
}

void guest_main(void) {
  static Digest siblings[MAXIMAL_DEPTH];
  Digest old_root, root, key_digest;
  u32 depth, updates;
  read_exactly(&depth, 4);
  read_exactly(&updates, 4);
  if (depth < 1 || depth > MAXIMAL_DEPTH) {
    message_text("depth must be 1 to 32, got ");
    message_number(depth);
    panic_with_message();
  }
  read_exactly(key_blocks[LEAF], DIGEST_BYTES);
  memcpy(key_blocks[NODE], key_blocks[LEAF], DIGEST_BYTES);
  key_blocks[NODE][DIGEST_BYTES / 4] = NODE;
  read_exactly(old_root, DIGEST_BYTES);
  memcpy(root, old_root, DIGEST_BYTES);

  for (u32 update = 0; update < updates; update++) {
    u32 index;
    Digest old_value, new_value, claimed;
    read_exactly(&index, 4);
    if (depth < 32 && (index >> depth) != 0) {
      message_text("update ");
      message_number(update);
      message_text(": there is no leaf ");
      message_number(index);
      message_text(" in a tree of depth ");
      message_number(depth);
      panic_with_message();
    }
    read_exactly(old_value, DIGEST_BYTES);
    read_exactly(new_value, DIGEST_BYTES);
    read_exactly(siblings, depth * DIGEST_BYTES);
    root_of(index, depth, old_value, siblings, claimed);
    if (memcmp(claimed, root, DIGEST_BYTES) != 0) {
      message_text("update ");
      message_number(update);
      message_text(": old value and siblings do not lead to the root");
      panic_with_message();
    }
    root_of(index, depth, new_value, siblings, root);
  }
  expect_end_of_input();

  Sha256 hasher;
  sha256_start(&hasher);
  sha256_add(&hasher, key_blocks[LEAF], DIGEST_BYTES);
  sha256_finish(&hasher, (u8 *)key_digest);
  commit(key_digest, DIGEST_BYTES);
  commit(old_root, DIGEST_BYTES);
  commit(root, DIGEST_BYTES);
  commit(&updates, sizeof updates);
}

#include "runtime.h"

enum { FD_STDIN = 0, FD_JOURNAL = 3 };
enum { ECALL_HALT = 0, ECALL_SOFTWARE = 2, ECALL_SHA = 3 };
enum {
  SYSCALL_KECCAK = 7,
  SYSCALL_PANIC = 9,
  SYSCALL_RANDOM = 11,
  SYSCALL_READ = 12,
  SYSCALL_VERIFY_INTEGRITY = 14,
  SYSCALL_WRITE = 16,
};

// Larger transfers are cut into pieces of this size, so that one system call never fills a segment.
enum { TRANSFER_BYTES = 4096 };

#define SYSCALL_NAME(name) "risc0_zkvm_platform::syscall::nr::" name

static Sha256 journal_hasher;
static size_t input_read;
static char message[512];
static size_t message_length;
// Digest of the list of receipts that the program relies on; zeros for an empty list.
static u8 assumptions[DIGEST_BYTES];

// A system call that the host answers. Every call passes all argument registers; unused ones are zero.
static u32 system_call(u32 number, const char *name, void *from_host, u32 from_host_bytes, u32 argument0,
                       u32 argument1, u32 argument2) {
  register u32 t0 __asm__("t0") = ECALL_SOFTWARE;
  register u32 t6 __asm__("t6") = number;
  register u32 a0 __asm__("a0") = (u32)from_host;
  register u32 a1 __asm__("a1") = from_host_bytes;
  register u32 a2 __asm__("a2") = (u32)name;
  register u32 a3 __asm__("a3") = argument0;
  register u32 a4 __asm__("a4") = argument1;
  register u32 a5 __asm__("a5") = argument2;
  __asm__ volatile("ecall"
                   : "+r"(a0), "+r"(a1)
                   : "r"(t0), "r"(t6), "r"(a2), "r"(a3), "r"(a4), "r"(a5)
                   : "memory");
  return a0;
}

static size_t read_piece(void *destination, size_t length) {
  u32 got = system_call(SYSCALL_READ, SYSCALL_NAME("SYS_READ"), destination, length, FD_STDIN, length, 0);
  if (got > length) {
    panic("the host answered a read with more bytes than were asked for");
  }
  return got;
}

size_t read_input(void *destination, size_t length) {
  size_t done = 0;
  while (done < length) {
    size_t wanted = length - done < TRANSFER_BYTES ? length - done : TRANSFER_BYTES;
    size_t got = read_piece((u8 *)destination + done, wanted);
    done += got;
    if (got < wanted) {
      break;
    }
  }
  input_read += done;
  return done;
}

void read_exactly(void *destination, size_t length) {
  size_t needed = input_read + length;
  if (read_input(destination, length) != length) {
    message_text("input too short: need ");
    message_number(needed);
    message_text(" bytes, got ");
    message_number(input_read);
    panic_with_message();
  }
}

void expect_end_of_input(void) {
  u32 spare;
  size_t expected = input_read;
  if (read_input(&spare, 1) != 0) {
    message_text("input too long: need ");
    message_number(expected);
    message_text(" bytes, got more");
    panic_with_message();
  }
}

void commit(const void *bytes, size_t length) {
  sha256_add(&journal_hasher, bytes, length);
  for (size_t done = 0; done < length;) {
    size_t piece = length - done < TRANSFER_BYTES ? length - done : TRANSFER_BYTES;
    system_call(SYSCALL_WRITE, SYSCALL_NAME("SYS_WRITE"), 0, 0, FD_JOURNAL, (u32)bytes + done, piece);
    done += piece;
  }
}

void message_text(const char *text) {
  while (*text != 0 && message_length < sizeof message) {
    message[message_length++] = *text++;
  }
}

void message_number(u64 number) {
  char digits[21];
  size_t next = sizeof digits - 1;
  digits[next] = 0;
  do {
    // A 64-bit division needs a library that is not there, so this one goes bit by bit.
    u64 quotient = 0;
    u64 remainder = 0;
    for (int bit = 63; bit >= 0; bit--) {
      remainder = (remainder << 1) | ((number >> bit) & 1);
      quotient <<= 1;
      if (remainder >= 10) {
        remainder -= 10;
        quotient |= 1;
      }
    }
    digits[--next] = (char)('0' + remainder);
    number = quotient;
  } while (number != 0);
  message_text(digits + next);
}

void panic_with_message(void) {
  system_call(SYSCALL_PANIC, SYSCALL_NAME("SYS_PANIC"), 0, 0, (u32)message, message_length, 0);
  // A host that goes on after a panic gets a program that can't: the instruction is illegal.
  __asm__ volatile("unimp");
  __builtin_unreachable();
}

void panic(const char *text) {
  message_text(text);
  panic_with_message();
}

static void sha256_blocks(u32 state[8], const u32 *blocks, u32 count) {
  register u32 t0 __asm__("t0") = ECALL_SHA;
  register u32 a0 __asm__("a0") = (u32)state;
  register u32 a1 __asm__("a1") = (u32)state;
  register u32 a2 __asm__("a2") = (u32)blocks;
  register u32 a3 __asm__("a3") = (u32)(blocks + 8);
  register u32 a4 __asm__("a4") = count;
  __asm__ volatile("ecall" : "+r"(a0), "+r"(a1), "+r"(a2), "+r"(a3), "+r"(a4) : "r"(t0) : "memory");
}

void sha256_start(Sha256 *hasher) {
  // The initial hash value, in the byte order of the digest, as the accelerator keeps its state.
  static const u32 initial[8] = {0x67e6096a, 0x85ae67bb, 0x72f36e3c, 0x3af54fa5,
                                 0x7f520e51, 0x8c68059b, 0xabd9831f, 0x19cde05b};
  memcpy(hasher->state, initial, sizeof initial);
  hasher->filled = 0;
  hasher->total = 0;
}

void sha256_add(Sha256 *hasher, const void *bytes, size_t length) {
  const u8 *next = bytes;
  hasher->total += length;
  while (length > 0) {
    size_t whole = length / BLOCK_BYTES;
    if (hasher->filled == 0 && whole > 0 && ((u32)next & 3) == 0) {
      // Aligned blocks go to the accelerator where they lie.
      u32 count = whole < 64 ? whole : 64;
      sha256_blocks(hasher->state, (const u32 *)next, count);
      next += count * BLOCK_BYTES;
      length -= count * BLOCK_BYTES;
      continue;
    }
    size_t room = BLOCK_BYTES - hasher->filled;
    size_t piece = length < room ? length : room;
    memcpy((u8 *)hasher->block + hasher->filled, next, piece);
    hasher->filled += piece;
    next += piece;
    length -= piece;
    if (hasher->filled == BLOCK_BYTES) {
      sha256_blocks(hasher->state, hasher->block, 1);
      hasher->filled = 0;
    }
  }
}

void sha256_finish(Sha256 *hasher, u8 digest[DIGEST_BYTES]) {
  u8 *block = (u8 *)hasher->block;
  u64 bits = hasher->total * 8;
  block[hasher->filled++] = 0x80;
  if (hasher->filled > BLOCK_BYTES - 8) {
    memset(block + hasher->filled, 0, BLOCK_BYTES - hasher->filled);
    sha256_blocks(hasher->state, hasher->block, 1);
    hasher->filled = 0;
  }
  memset(block + hasher->filled, 0, BLOCK_BYTES - 8 - hasher->filled);
  for (int i = 0; i < 8; i++) {
    block[BLOCK_BYTES - 1 - i] = (u8)(bits >> (8 * i));
  }
  sha256_blocks(hasher->state, hasher->block, 1);
  memcpy(digest, hasher->state, DIGEST_BYTES);
}

void *memcpy(void *destination, const void *source, size_t length) {
  u8 *to = destination;
  const u8 *from = source;
  if ((((u32)to | (u32)from) & 3) == 0) {
    for (; length >= 4; length -= 4, to += 4, from += 4) {
      *(u32 *)to = *(const u32 *)from;
    }
  }
  while (length-- > 0) {
    *to++ = *from++;
  }
  return destination;
}

void *memset(void *destination, int value, size_t length) {
  u8 *to = destination;
  while (length-- > 0) {
    *to++ = (u8)value;
  }
  return destination;
}

int memcmp(const void *left, const void *right, size_t length) {
  const u8 *a = left;
  const u8 *b = right;
  for (; length > 0; length--, a++, b++) {
    if (*a != *b) {
      return *a < *b ? -1 : 1;
    }
  }
  return 0;
}

// RISC Zero's digest of a structure: of its tag, the digests of its fields, its numbers and the count of digests.
static void tagged_digest(const char *tag, const u8 *const *fields, u32 count, const u32 *numbers, u32 numbers_count,
                          u8 digest[DIGEST_BYTES]) {
  const u8 count_bytes[2] = {(u8)count, 0};
  u8 tag_digest[DIGEST_BYTES];
  size_t tag_length = 0;
  Sha256 hasher;
  while (tag[tag_length] != 0) {
    tag_length++;
  }
  sha256_start(&hasher);
  sha256_add(&hasher, tag, tag_length);
  sha256_finish(&hasher, tag_digest);
  sha256_start(&hasher);
  sha256_add(&hasher, tag_digest, DIGEST_BYTES);
  for (u32 i = 0; i < count; i++) {
    sha256_add(&hasher, fields[i], DIGEST_BYTES);
  }
  sha256_add(&hasher, numbers, numbers_count * sizeof *numbers);
  sha256_add(&hasher, count_bytes, sizeof count_bytes);
  sha256_finish(&hasher, digest);
}

static const u8 zeros[DIGEST_BYTES];

static void output_digest(const u8 *journal_digest, const u8 *assumptions_digest, u8 digest[DIGEST_BYTES]) {
  const u8 *fields[] = {journal_digest, assumptions_digest};
  tagged_digest("risc0.Output", fields, 2, 0, 0, digest);
}

void assume_receipt(const u8 image_id[DIGEST_BYTES], const void *journal, size_t journal_length) {
  static const u32 no_pc[1] = {0};
  static const u32 halted_with_0[2] = {0, 0};
  u8 journal_digest[DIGEST_BYTES], end_state[DIGEST_BYTES], output[DIGEST_BYTES], assumption[DIGEST_BYTES];
  // What the host is shown: the digest of the claim, and zeros for "proved like this program".
  u32 shown[16];
  u8 *claim = (u8 *)shown;
  Sha256 hasher;
  sha256_start(&hasher);
  sha256_add(&hasher, journal, journal_length);
  sha256_finish(&hasher, journal_digest);
  output_digest(journal_digest, zeros, output);
  const u8 *state_fields[] = {zeros};
  tagged_digest("risc0.SystemState", state_fields, 1, no_pc, 1, end_state);
  const u8 *claim_fields[] = {zeros, image_id, end_state, output};
  tagged_digest("risc0.ReceiptClaim", claim_fields, 4, halted_with_0, 2, claim);
  memset(claim + DIGEST_BYTES, 0, DIGEST_BYTES);
  system_call(SYSCALL_VERIFY_INTEGRITY, SYSCALL_NAME("SYS_VERIFY_INTEGRITY"), 0, 0, (u32)shown, sizeof shown, 0);

  const u8 *assumption_fields[] = {claim, zeros};
  tagged_digest("risc0.Assumption", assumption_fields, 2, 0, 0, assumption);
  const u8 *list_fields[] = {assumption, assumptions};
  tagged_digest("risc0.Assumptions", list_fields, 2, 0, 0, assumptions);
}

void random_bytes(u32 *destination, size_t words) {
  system_call(SYSCALL_RANDOM, SYSCALL_NAME("SYS_RANDOM"), destination, words, 0, 0, 0);
}

void keccak_permute(u32 state[50]) {
  system_call(SYSCALL_KECCAK, SYSCALL_NAME("SYS_KECCAK"), state, 50, 0, (u32)state, 0);
}

// Ends with the digest of what the program made public and relied on.
static void halt(void) __attribute__((noreturn));
static void halt(void) {
  u8 journal_digest[DIGEST_BYTES];
  u32 output[8];
  sha256_finish(&journal_hasher, journal_digest);
  output_digest(journal_digest, assumptions, (u8 *)output);

  register u32 t0 __asm__("t0") = ECALL_HALT;
  register u32 a0 __asm__("a0") = 0;
  register u32 a1 __asm__("a1") = (u32)output;
  __asm__ volatile("ecall" : : "r"(t0), "r"(a0), "r"(a1) : "memory");
  __builtin_unreachable();
}

__attribute__((used, noreturn)) void runtime_main(void) {
  sha256_start(&journal_hasher);
  guest_main();
  halt();
}

// The stack grows down from 0x00200400 (risc0-zkvm-platform, src/memory.rs, STACK_TOP).
__asm__(".section .text.start, \"ax\"\n"
        ".globl _start\n"
        "_start:\n"
        "  .option push\n"
        "  .option norelax\n"
        "  la gp, __global_pointer$\n"
        "  .option pop\n"
        "  li sp, 0x00200400\n"
        "  call runtime_main\n");

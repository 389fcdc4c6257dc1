// A minimal runtime for RISC Zero guest programs in C: input, public values, panics and SHA-256.
//
// It speaks the system calls of RISC Zero's v1compat kernel (crate risc0-zkvm-platform 2.2, src/syscall.rs)
// and needs no C library. A program defines `void guest_main(void)`; what it commits becomes the journal, and
// returning ends it with exit code 0.
#ifndef RUNTIME_H
#define RUNTIME_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef __SIZE_TYPE__ size_t;

enum { DIGEST_BYTES = 32, BLOCK_BYTES = 64 };

// Reads up to `length` bytes of the input. Less than `length` means that the input has ended.
size_t read_input(void *destination, size_t length);

// Reads exactly `length` bytes, or panics with "input too short: need N bytes, got M", where both count from
// the start of the input.
void read_exactly(void *destination, size_t length);

// Panics unless the whole input has been read.
void expect_end_of_input(void);

// Appends bytes to the journal, which is public.
void commit(const void *bytes, size_t length);

// Relies on another program's receipt: that the program with this image id ended well with this journal. The
// receipt must be among the job's assumptions; the proof of this program then holds only together with it, which
// the prover resolves.
void assume_receipt(const u8 image_id[DIGEST_BYTES], const void *journal, size_t journal_length);

// Fills memory with random bytes that the host chooses.
void random_bytes(u32 *destination, size_t words);

// Asks for a permutation by the keccak accelerator, which must be proved apart.
void keccak_permute(u32 state[50]);

// Ends the program with a message. It may be put together from pieces with `message_*` before.
void panic(const char *message) __attribute__((noreturn));

// Appends to the message that the next `panic_with_message` shows.
void message_text(const char *text);
void message_number(u64 number);
void panic_with_message(void) __attribute__((noreturn));

// SHA-256 (FIPS 180-4) on the zkVM's accelerator, which takes a block at a time.
typedef struct {
  u32 state[8];
  u32 block[16];
  size_t filled;
  u64 total;
} Sha256;

void sha256_start(Sha256 *hasher);
void sha256_add(Sha256 *hasher, const void *bytes, size_t length);
void sha256_finish(Sha256 *hasher, u8 digest[DIGEST_BYTES]);

void *memcpy(void *destination, const void *source, size_t length);
void *memset(void *destination, int value, size_t length);
int memcmp(const void *left, const void *right, size_t length);

void guest_main(void);

#endif

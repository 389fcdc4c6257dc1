// A guest for SP1: applies Keccak's permutation to a state as often as its input has bytes.
//
// Few cycles and many calls of a precompile: its events are proved in shards of their own, which read what the shards of
// the program have left. It commits to no public values.

typedef unsigned int u32;
typedef unsigned long u64;

// Numbers of SP1's system calls.
enum { HALT = 0x0, COMMIT = 0x10, COMMIT_DEFERRED_PROOFS = 0x1a, HINT_LEN = 0xf0, KECCAK_PERMUTE = 0x00010109 };

// Words of a digest.
enum { WORDS = 8 };

static u64 call(u64 number, u64 first, u64 second) {
  register u64 t0 __asm__("t0") = number;
  register u64 a0 __asm__("a0") = first;
  register u64 a1 __asm__("a1") = second;
  __asm__ volatile("ecall" : "+r"(t0) : "r"(a0), "r"(a1) : "memory");
  return t0;
}

static u64 state[25];

// SHA-256 of nothing, as words of bytes in their order: the digest of no public values.
static const u32 nothing[WORDS] = {0x42c4b0e3, 0x141cfc98, 0xc8f4fb9a, 0x24b96f99,
                                   0xe441ae27, 0x4c939b64, 0x1b9995a4, 0x55b85278};

__attribute__((used)) static void run(void) {
  u64 times = call(HINT_LEN, 0, 0);
  for (u64 done = 0; done < times; done++) call(KECCAK_PERMUTE, (u64)state, 0);
  for (u64 word = 0; word < WORDS; word++) call(COMMIT, word, nothing[word]);
  for (u64 word = 0; word < WORDS; word++) call(COMMIT_DEFERRED_PROOFS, word, 0);
  call(HALT, 0, 0);
}

__attribute__((naked, section(".text.start"))) void start(void) {
  __asm__("li sp, 0x78000000\n\tcall run");
}

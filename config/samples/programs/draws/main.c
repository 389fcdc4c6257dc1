// Commits 32 random bytes. For tests: a planner that runs again must give the program the same ones.
#include "../runtime/runtime.h"

void guest_main(void) {
  u32 bytes[8];
  random_bytes(bytes, 4);
  random_bytes(bytes + 4, 4);
  commit(bytes, sizeof bytes);
}

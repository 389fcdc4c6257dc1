// Runs for ever. For tests of the cycle limit.
#include "../runtime/runtime.h"

void guest_main(void) {
  for (;;) {
    __asm__ volatile("");
  }
}

// Uses the keccak accelerator. For tests: a backend without that circuit must refuse.
#include "../runtime/runtime.h"

void guest_main(void) {
  static u32 state[50];
  keccak_permute(state);
  commit(state, 32);
}

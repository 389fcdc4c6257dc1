// Ends with a panic whose message is its input, or a message of its own where there is none. For tests.
#include "../runtime/runtime.h"

void guest_main(void) {
  static char text[257];
  if (read_input(text, sizeof text - 1) == 0) {
    panic("this program always panics");
  }
  panic(text);
}

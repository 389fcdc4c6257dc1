// Computes a Fibonacci number the long way, so that the cost grows with n: about five cycles for each
// step.
//
// Input:   n, as 8 bytes (or 4) little-endian.
// Journal: n as 8 bytes little-endian, then F(n) modulo 2^64 as 8 bytes little-endian; F(0) = 0, F(1) = 1.
#include "../runtime/runtime.h"

void guest_main(void) {
  u64 n = 0;
  u64 spare = 0;
  read_exactly(&n, 4);
  size_t more = read_input((u8 *)&n + 4, 4);
  if (more != 0 && more != 4) {
    message_text("input of the wrong length: need 4 or 8 bytes (n, little-endian), got ");
    message_number(4 + more);
    panic_with_message();
  }
  if (more == 4 && read_input(&spare, 8) != 0) {
    panic("input too long: need 4 or 8 bytes (n, little-endian), got more");
  }
  u64 current = 0;
  u64 next = 1;
  u64 left = n;
  while (left >= 2) {
    // Two steps at once need no third number, and a counter of one word is cheaper than one of two.
    u32 pairs = left >= 0x80000000 ? 0x40000000 : (u32)left / 2;
    left -= (u64)pairs * 2;
    for (; pairs > 0; pairs--) {
      current += next;
      next += current;
    }
  }
  if (left == 1) {
    current = next;
  }
  commit(&n, sizeof n);
  commit(&current, sizeof current);
}

// Functions of compiler-rt and libgcc that not every version of them has.
#include "../runtime_interface.h"

extern "C" __bf16 __truncsfbf2(float x) {  // to nearest even
  const uint bits = __builtin_bit_cast(uint, x);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  const uint rounded = nan ? bits >> 16 | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return __builtin_bit_cast(__bf16, (unsigned short)rounded);
}

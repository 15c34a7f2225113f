// What clang's -fsanitize=array-bounds,… calls. Every first argument starts with a source location.
#include "state.h"

struct Location {
  const char *file;
  uint line, column;
};

extern "C" {
#define HANDLER(NAME, MESSAGE)                                                               \
  void __ubsan_handle_##NAME##_abort(const Location *at, ulong a, ulong b) {                 \
    fail(MESSAGE " (%s:%u:%u), operands 0x%lx 0x%lx", at->file, at->line, at->column, a, b); \
  }
HANDLER(add_overflow, "signed overflow in +")
HANDLER(sub_overflow, "signed overflow in -")
HANDLER(mul_overflow, "signed overflow in *")
HANDLER(negate_overflow, "signed overflow in unary -")
HANDLER(divrem_overflow, "integer division by zero or overflow")
HANDLER(shift_out_of_bounds, "shift count out of range")
HANDLER(out_of_bounds, "array index out of bounds")
HANDLER(type_mismatch_v1, "misaligned or null access")
HANDLER(float_cast_overflow, "float to integer: value out of range")
HANDLER(load_invalid_value, "invalid bool or enum value")
void __ubsan_handle_builtin_unreachable(const Location *at) {
  fail("unreachable code reached (%s:%u)", at->file, at->line);
}
void __ubsan_handle_missing_return(const Location *at) {
  fail("missing return (%s:%u)", at->file, at->line);
}
}

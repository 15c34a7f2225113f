// <metal_atomic>: relaxed atomics on device and threadgroup memory.
#pragma once
namespace metal {

enum memory_order { memory_order_relaxed = 0 };

template <typename T> struct atomic {  // no operators: only the functions take it
  static_assert(is_same<T, int>::value || is_same<T, uint>::value || is_same<T, float>::value ||
                    is_same<T, bool>::value || is_same<T, ulong>::value,
                "atomic<T>: int, uint, float, bool or ulong");
  T value_;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;

template <typename T> struct msl_same {
  typedef T type;
};  // a parameter that deduces nothing
#define MSL_OPERAND(T) typename msl_same<T>::type

#if MSL_CHECK
#define MSL_ATOMIC_IN(SPACE)                                                                    \
  template <typename T> T atomic_load_explicit(const volatile SPACE atomic<T> *, memory_order); \
  template <typename T>                                                                         \
  void atomic_store_explicit(volatile SPACE atomic<T> *, MSL_OPERAND(T), memory_order);         \
  template <typename T>                                                                         \
  bool atomic_compare_exchange_weak_explicit(volatile SPACE atomic<T> *, thread T *,            \
                                             MSL_OPERAND(T), memory_order, memory_order);
#define MSL_ATOMIC_UPDATE(NAME, EXPRESSION)                                                \
  template <typename T> T NAME(volatile device atomic<T> *, MSL_OPERAND(T), memory_order); \
  template <typename T> T NAME(volatile threadgroup atomic<T> *, MSL_OPERAND(T), memory_order);
MSL_ATOMIC_IN(device)
MSL_ATOMIC_IN(threadgroup)
#else
#define MSL_CALLER __builtin_return_address(0)
template <typename T>
MSL_EMULATION T atomic_load_explicit(const volatile atomic<T> *object, memory_order) {
  msl_atomic_access(object, sizeof(T), MSL_ATOMIC_LOAD, MSL_CALLER);
  return object->value_;
}
template <typename T>
MSL_EMULATION void atomic_store_explicit(volatile atomic<T> *object, MSL_OPERAND(T) value,
                                         memory_order) {
  msl_atomic_access(object, sizeof(T), MSL_ATOMIC_STORE, MSL_CALLER);
  object->value_ = value;
}
template <typename T>
MSL_EMULATION bool atomic_compare_exchange_weak_explicit(volatile atomic<T> *object, T *expected,
                                                         MSL_OPERAND(T) value, memory_order,
                                                         memory_order) {
  msl_atomic_access(object, sizeof(T), MSL_ATOMIC_MODIFY, MSL_CALLER);
  const T old = object->value_;
  const bool equal = __builtin_memcmp(&old, expected, sizeof(T)) == 0;
  if (equal)
    object->value_ = value;
  else
    *expected = old;
  return equal;
}
#define MSL_ATOMIC_UPDATE(NAME, EXPRESSION)                                              \
  template <typename T>                                                                  \
  MSL_EMULATION T NAME(volatile atomic<T> *object, MSL_OPERAND(T) value, memory_order) { \
    msl_atomic_access(object, sizeof(T), MSL_ATOMIC_MODIFY, MSL_CALLER);                 \
    const T old = object->value_;                                                        \
    object->value_ = (EXPRESSION);                                                       \
    return old;                                                                          \
  }
#endif
MSL_ATOMIC_UPDATE(atomic_exchange_explicit, value)
MSL_ATOMIC_UPDATE(atomic_fetch_add_explicit, old + value)
MSL_ATOMIC_UPDATE(atomic_fetch_sub_explicit, old - value)
MSL_ATOMIC_UPDATE(atomic_fetch_min_explicit, value < old ? value : old)
MSL_ATOMIC_UPDATE(atomic_fetch_max_explicit, old < value ? value : old)
MSL_ATOMIC_UPDATE(atomic_fetch_and_explicit, old &value)
MSL_ATOMIC_UPDATE(atomic_fetch_or_explicit, old | value)
MSL_ATOMIC_UPDATE(atomic_fetch_xor_explicit, old ^ value)

}  // namespace metal

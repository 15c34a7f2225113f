// <metal_type_traits>, <metal_limits> and as_type.
#pragma once
namespace metal {

template <typename T, int N> using vec = T __attribute__((ext_vector_type(N)));
template <typename T> struct vector_traits {
  static constexpr constant int n = 1;
  typedef T elem;
};
template <typename T, int N> struct vector_traits<T __attribute__((ext_vector_type(N)))> {
  static constexpr constant int n = N;
  typedef T elem;
};
template <typename A, typename B> struct is_same {
  static constexpr constant bool value = false;
};
template <typename A> struct is_same<A, A> {
  static constexpr constant bool value = true;
};
template <typename T, T V> struct integral_constant {
  static constexpr constant T value = V;
  typedef T value_type;
  METAL_FUNC constexpr operator T() const { return V; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;
template <typename A, typename B> constexpr constant bool is_same_v = is_same<A, B>::value;
template <typename A, typename B>
constexpr constant bool is_convertible_v = __is_convertible_to(A, B);
template <bool B, typename T = void> struct enable_if {};
template <typename T> struct enable_if<true, T> {
  typedef T type;
};
template <bool B, typename T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, typename T, typename U> struct conditional {
  typedef T type;
};
template <typename T, typename U> struct conditional<false, T, U> {
  typedef U type;
};
template <bool B, typename T, typename U> using conditional_t = typename conditional<B, T, U>::type;
template <typename T> struct is_floating_point {
  static constexpr constant bool value =
      is_same<T, float>::value || is_same<T, half>::value || is_same<T, bfloat>::value;
};
template <typename T> constexpr constant bool is_floating_point_v = is_floating_point<T>::value;
template <typename T> struct remove_cv {
  typedef T type;
};
template <typename T> struct remove_cv<const T> {
  typedef T type;
};
template <typename T> struct remove_cv<volatile T> {
  typedef T type;
};
template <typename T> struct remove_cv<const volatile T> {
  typedef T type;
};
template <typename T> using remove_cv_t = typename remove_cv<T>::type;
template <typename T> struct remove_reference {
  typedef T type;
};
template <typename T> struct remove_reference<T &> {
  typedef T type;
};
template <typename T> using remove_reference_t = typename remove_reference<T>::type;
template <typename T> struct remove_addrspace {
  typedef T type;
};
#if MSL_CHECK
template <typename T> struct remove_addrspace<device T> {
  typedef T type;
};
template <typename T> struct remove_addrspace<threadgroup T> {
  typedef T type;
};
template <typename T> struct remove_addrspace<constant T> {
  typedef T type;
};
template <typename T> struct remove_addrspace<thread T> {
  typedef T type;
};
#endif
template <typename T> using remove_addrspace_t = typename remove_addrspace<T>::type;
template <typename T> struct is_integral {
  static constexpr constant bool value = __is_integral(T);
};
template <typename T> constexpr constant bool is_integral_v = __is_integral(T);
template <typename T> constexpr constant bool is_unsigned_v = __is_unsigned(T);
template <typename T> constexpr constant bool is_signed_v = __is_signed(T);
template <typename T> struct numeric_limits;
#define MSL_INTEGER_LIMITS(T, LO, HI)               \
  template <> struct numeric_limits<T> {            \
    static constexpr T min() { return (T)(LO); }    \
    static constexpr T max() { return (T)(HI); }    \
    static constexpr T lowest() { return (T)(LO); } \
  };
MSL_INTEGER_LIMITS(char, -128, 127)
MSL_INTEGER_LIMITS(signed char, -128, 127)
MSL_INTEGER_LIMITS(uchar, 0, 255)
MSL_INTEGER_LIMITS(short, -32768, 32767)
MSL_INTEGER_LIMITS(ushort, 0, 65535)
MSL_INTEGER_LIMITS(int, -2147483647 - 1, 2147483647)
MSL_INTEGER_LIMITS(uint, 0, 0xffffffffu)
MSL_INTEGER_LIMITS(long, -9223372036854775807L - 1, 9223372036854775807L)
MSL_INTEGER_LIMITS(ulong, 0, ~0ul)
#define MSL_FLOAT_LIMITS(T, MN, MX, EP)                              \
  template <> struct numeric_limits<T> {                             \
    static constexpr T min() { return (T)(MN); }                     \
    static constexpr T max() { return (T)(MX); }                     \
    static constexpr T lowest() { return (T)(-MX); }                 \
    static constexpr T epsilon() { return (T)(EP); }                 \
    static constexpr T infinity() { return (T)__builtin_inff(); }    \
    static constexpr T quiet_NaN() { return (T)__builtin_nanf(""); } \
  };
MSL_FLOAT_LIMITS(float, FLT_MIN, FLT_MAX, FLT_EPSILON)
MSL_FLOAT_LIMITS(half, 6.103515625e-05f, 65504.0f, 9.765625e-04f)
MSL_FLOAT_LIMITS(bfloat, 1.175494351e-38f, 3.38953139e38f, 7.8125e-03f)

template <typename T, typename U> METAL_FUNC T as_type(U u) {
  static_assert(sizeof(T) == sizeof(U), "as_type: the sizes differ");
  return __builtin_bit_cast(T, u);
}

}  // namespace metal
using metal::as_type;

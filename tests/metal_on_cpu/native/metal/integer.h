// <metal_common>, <metal_integer>, <metal_geometric> and <metal_relational>.
#pragma once
namespace metal {

// One overload a type, as in Metal: max(float, int) and min(uint, int) are ambiguous, hence errors.
#define MSL_COMPARISONS(T)                                            \
  METAL_FUNC T min(T a, T b) { return b < a ? b : a; }                \
  METAL_FUNC T max(T a, T b) { return a < b ? b : a; }                \
  METAL_FUNC T clamp(T x, T lo, T hi) { return min(max(x, lo), hi); } \
  METAL_FUNC T select(T a, T b, bool c) { return c ? b : a; }
#define MSL_SIGNED(T) \
  MSL_COMPARISONS(T)  \
  METAL_FUNC T abs(T x) { return (T)(x < 0 ? -x : x); }
#define MSL_UNSIGNED(T) \
  MSL_COMPARISONS(T)    \
  METAL_FUNC T abs(T x) { return x; }
#define MSL_FLOATING(T) \
  MSL_COMPARISONS(T)    \
  METAL_FUNC T abs(T x) { return (T)__builtin_fabsf((float)x); }
MSL_SIGNED(char)
MSL_SIGNED(short)
MSL_SIGNED(int)
MSL_SIGNED(long)
MSL_UNSIGNED(uchar)
MSL_UNSIGNED(ushort)
MSL_UNSIGNED(uint)
MSL_UNSIGNED(ulong)
MSL_FLOATING(float)
MSL_FLOATING(half)
MSL_FLOATING(bfloat)
MSL_BY_COMPONENT_1(abs)
MSL_BY_COMPONENT_2(min)
MSL_BY_COMPONENT_2(max)
MSL_BY_COMPONENT_3(clamp)

template <typename T, int N> METAL_FUNC vec<T, N> max(vec<T, N> a, T b) {
  return max(a, (vec<T, N>)b);
}
template <typename T, int N> METAL_FUNC vec<T, N> min(vec<T, N> a, T b) {
  return min(a, (vec<T, N>)b);
}
template <typename T, int N> METAL_FUNC vec<T, N> clamp(vec<T, N> a, T lo, T hi) {
  return clamp(a, (vec<T, N>)lo, (vec<T, N>)hi);
}
template <typename T, int N> METAL_FUNC T dot(vec<T, N> a, vec<T, N> b) {
  T sum = 0;
  for (int i = 0; i < N; i++) sum += a[i] * b[i];
  return sum;
}
template <typename T, int N> METAL_FUNC T length_squared(vec<T, N> a) { return dot(a, a); }
template <typename T, int N> METAL_FUNC T length(vec<T, N> a) { return sqrt(dot(a, a)); }

// A comparison of vectors is a vector of 0 and -1.
template <int N> METAL_FUNC bool any(vec<int, N> a) {
  bool r = false;
  for (int i = 0; i < N; i++) r |= a[i] != 0;
  return r;
}
template <int N> METAL_FUNC bool all(vec<int, N> a) {
  bool r = true;
  for (int i = 0; i < N; i++) r &= a[i] != 0;
  return r;
}
template <typename T, int N> METAL_FUNC vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<int, N> c) {
  vec<T, N> r;
  for (int i = 0; i < N; i++) r[i] = c[i] ? b[i] : a[i];
  return r;
}

METAL_FUNC int popcount(int x) { return __builtin_popcount((uint)x); }
METAL_FUNC uint popcount(uint x) { return (uint)__builtin_popcount(x); }
METAL_FUNC uint clz(uint x) { return x ? (uint)__builtin_clz(x) : 32u; }
METAL_FUNC uint ctz(uint x) { return x ? (uint)__builtin_ctz(x) : 32u; }
METAL_FUNC uint mulhi(uint a, uint b) { return (uint)(((ulong)a * b) >> 32); }

}  // namespace metal

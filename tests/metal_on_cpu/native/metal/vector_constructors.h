// float4(a, b.xy, c) and the like: clang knows the types but not their constructors.
#pragma once
namespace metal {

template <typename V, typename A> METAL_FUNC void msl_append(thread V &r, thread int &i, A a) {
  if constexpr (vector_traits<A>::n == 1)
    r[i++] = (typename vector_traits<V>::elem)a;
  else
    for (int k = 0; k < vector_traits<A>::n; k++) r[i++] = (typename vector_traits<V>::elem)a[k];
}
template <typename V, typename... A> METAL_FUNC V msl_construct(A... a) {
  constexpr int n = vector_traits<V>::n, m = (0 + ... + vector_traits<A>::n);
  static_assert(m == n || m == 0 || (m == 1 && sizeof...(A) == 1),
                "vector constructor: wrong number of components");
  V r;
  if constexpr (m == 0) {
    for (int i = 0; i < n; i++) r[i] = 0;
  } else if constexpr (m == 1) {
    for (int i = 0; i < n; i++) ((r[i] = (typename vector_traits<V>::elem)a), ...);
  } else {
    int i = 0;
    (msl_append<V>(r, i, a), ...);
  }
  return r;
}

}  // namespace metal

#define MSL_CONSTRUCT(V, ...) (::metal::msl_construct<V>(__VA_ARGS__))
#define float2(...) MSL_CONSTRUCT(float2, __VA_ARGS__)
#define float3(...) MSL_CONSTRUCT(float3, __VA_ARGS__)
#define float4(...) MSL_CONSTRUCT(float4, __VA_ARGS__)
#define half2(...) MSL_CONSTRUCT(half2, __VA_ARGS__)
#define half3(...) MSL_CONSTRUCT(half3, __VA_ARGS__)
#define half4(...) MSL_CONSTRUCT(half4, __VA_ARGS__)
#define bfloat2(...) MSL_CONSTRUCT(bfloat2, __VA_ARGS__)
#define bfloat3(...) MSL_CONSTRUCT(bfloat3, __VA_ARGS__)
#define bfloat4(...) MSL_CONSTRUCT(bfloat4, __VA_ARGS__)
#define char2(...) MSL_CONSTRUCT(char2, __VA_ARGS__)
#define char3(...) MSL_CONSTRUCT(char3, __VA_ARGS__)
#define char4(...) MSL_CONSTRUCT(char4, __VA_ARGS__)
#define uchar2(...) MSL_CONSTRUCT(uchar2, __VA_ARGS__)
#define uchar3(...) MSL_CONSTRUCT(uchar3, __VA_ARGS__)
#define uchar4(...) MSL_CONSTRUCT(uchar4, __VA_ARGS__)
#define short2(...) MSL_CONSTRUCT(short2, __VA_ARGS__)
#define short3(...) MSL_CONSTRUCT(short3, __VA_ARGS__)
#define short4(...) MSL_CONSTRUCT(short4, __VA_ARGS__)
#define ushort2(...) MSL_CONSTRUCT(ushort2, __VA_ARGS__)
#define ushort3(...) MSL_CONSTRUCT(ushort3, __VA_ARGS__)
#define ushort4(...) MSL_CONSTRUCT(ushort4, __VA_ARGS__)
#define int2(...) MSL_CONSTRUCT(int2, __VA_ARGS__)
#define int3(...) MSL_CONSTRUCT(int3, __VA_ARGS__)
#define int4(...) MSL_CONSTRUCT(int4, __VA_ARGS__)
#define uint2(...) MSL_CONSTRUCT(uint2, __VA_ARGS__)
#define uint3(...) MSL_CONSTRUCT(uint3, __VA_ARGS__)
#define uint4(...) MSL_CONSTRUCT(uint4, __VA_ARGS__)
#define long2(...) MSL_CONSTRUCT(long2, __VA_ARGS__)
#define long3(...) MSL_CONSTRUCT(long3, __VA_ARGS__)
#define long4(...) MSL_CONSTRUCT(long4, __VA_ARGS__)
#define ulong2(...) MSL_CONSTRUCT(ulong2, __VA_ARGS__)
#define ulong3(...) MSL_CONSTRUCT(ulong3, __VA_ARGS__)
#define ulong4(...) MSL_CONSTRUCT(ulong4, __VA_ARGS__)

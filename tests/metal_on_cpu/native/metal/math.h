// <metal_math>: floating-point functions, for scalars and by component for vectors. half and bfloat
// are computed in float and rounded once.
#pragma once
namespace metal {

#define MSL_BY_COMPONENT_1(NAME)                                        \
  template <typename T, int N> METAL_FUNC vec<T, N> NAME(vec<T, N> a) { \
    vec<T, N> r;                                                        \
    for (int i = 0; i < N; i++) r[i] = NAME(a[i]);                      \
    return r;                                                           \
  }
#define MSL_BY_COMPONENT_2(NAME)                                                     \
  template <typename T, int N> METAL_FUNC vec<T, N> NAME(vec<T, N> a, vec<T, N> b) { \
    vec<T, N> r;                                                                     \
    for (int i = 0; i < N; i++) r[i] = NAME(a[i], b[i]);                             \
    return r;                                                                        \
  }
#define MSL_BY_COMPONENT_3(NAME)                                                                  \
  template <typename T, int N> METAL_FUNC vec<T, N> NAME(vec<T, N> a, vec<T, N> b, vec<T, N> c) { \
    vec<T, N> r;                                                                                  \
    for (int i = 0; i < N; i++) r[i] = NAME(a[i], b[i], c[i]);                                    \
    return r;                                                                                     \
  }

#define MSL_UNARY_OF(T, NAME, E) \
  METAL_FUNC T NAME(T x_) {      \
    const float x = (float)x_;   \
    return (T)(E);               \
  }
#define MSL_UNARY(NAME, E)      \
  MSL_UNARY_OF(float, NAME, E)  \
  MSL_UNARY_OF(half, NAME, E)   \
  MSL_UNARY_OF(bfloat, NAME, E) \
  MSL_BY_COMPONENT_1(NAME)
#define MSL_BINARY_OF(T, NAME, E)              \
  METAL_FUNC T NAME(T x_, T y_) {              \
    const float x = (float)x_, y = (float)y_;  \
    return (T)(E);                             \
  }
#define MSL_BINARY(NAME, E)      \
  MSL_BINARY_OF(float, NAME, E)  \
  MSL_BINARY_OF(half, NAME, E)   \
  MSL_BINARY_OF(bfloat, NAME, E) \
  MSL_BY_COMPONENT_2(NAME)

#define MSL_FUNCTIONS                        \
  MSL_UNARY(exp, __builtin_expf(x))          \
  MSL_UNARY(exp2, __builtin_exp2f(x))        \
  MSL_UNARY(exp10, __builtin_powf(10.0f, x)) \
  MSL_UNARY(log, __builtin_logf(x))          \
  MSL_UNARY(log2, __builtin_log2f(x))        \
  MSL_UNARY(log10, __builtin_log10f(x))      \
  MSL_UNARY(sqrt, __builtin_sqrtf(x))        \
  MSL_UNARY(rsqrt, 1.0f / __builtin_sqrtf(x)) \
  MSL_UNARY(sin, __builtin_sinf(x))          \
  MSL_UNARY(cos, __builtin_cosf(x))          \
  MSL_UNARY(tan, __builtin_tanf(x))          \
  MSL_UNARY(asin, __builtin_asinf(x))        \
  MSL_UNARY(acos, __builtin_acosf(x))        \
  MSL_UNARY(atan, __builtin_atanf(x))        \
  MSL_UNARY(sinh, __builtin_sinhf(x))        \
  MSL_UNARY(cosh, __builtin_coshf(x))        \
  MSL_UNARY(tanh, __builtin_tanhf(x))        \
  MSL_UNARY(asinh, __builtin_asinhf(x))      \
  MSL_UNARY(acosh, __builtin_acoshf(x))      \
  MSL_UNARY(atanh, __builtin_atanhf(x))      \
  MSL_UNARY(floor, __builtin_floorf(x))      \
  MSL_UNARY(ceil, __builtin_ceilf(x))        \
  MSL_UNARY(trunc, __builtin_truncf(x))      \
  MSL_UNARY(round, __builtin_roundf(x))      \
  MSL_UNARY(rint, __builtin_rintf(x))        \
  MSL_UNARY(fabs, __builtin_fabsf(x))        \
  MSL_BINARY(pow, __builtin_powf(x, y))      \
  MSL_BINARY(powr, __builtin_powf(x, y))     \
  MSL_BINARY(atan2, __builtin_atan2f(x, y))  \
  MSL_BINARY(fmod, __builtin_fmodf(x, y))    \
  MSL_BINARY(fmin, __builtin_fminf(x, y))    \
  MSL_BINARY(fmax, __builtin_fmaxf(x, y))
MSL_FUNCTIONS
namespace precise {
MSL_FUNCTIONS
}
namespace fast {
MSL_FUNCTIONS
}

MSL_BINARY(copysign, __builtin_copysignf(x, y))
MSL_UNARY(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f * x)
MSL_UNARY(fract, x - __builtin_floorf(x))
MSL_UNARY(saturate, x > 1 ? 1.0f : x > 0 ? x : 0.0f)
MSL_BINARY(step, y < x ? 0.0f : 1.0f)

METAL_FUNC float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
METAL_FUNC half fma(half a, half b, half c) {
  return (half)__builtin_fmaf((float)a, (float)b, (float)c);
}
MSL_BY_COMPONENT_3(fma)
METAL_FUNC float mix(float a, float b, float t) { return a + (b - a) * t; }
METAL_FUNC half mix(half a, half b, half t) { return a + (b - a) * t; }
MSL_BY_COMPONENT_3(mix)

#define MSL_PREDICATE_OF(T, NAME, E) \
  METAL_FUNC bool NAME(T x_) {       \
    const float x = (float)x_;       \
    return E;                        \
  }
#define MSL_PREDICATE(NAME, E)      \
  MSL_PREDICATE_OF(float, NAME, E)  \
  MSL_PREDICATE_OF(half, NAME, E)   \
  MSL_PREDICATE_OF(bfloat, NAME, E)
MSL_PREDICATE(isnan, __builtin_isnan(x))
MSL_PREDICATE(isinf, __builtin_isinf(x))
MSL_PREDICATE(isfinite, __builtin_isfinite(x))
MSL_PREDICATE(signbit, __builtin_signbit(x) != 0)

}  // namespace metal

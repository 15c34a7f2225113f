// Metal's names in CUDA, put before tlstm.h for mx.fast.cuda_kernel. mlx_tlstm/kernels/cuda.py does
// what a header cannot: it defines the attributes that a body names, makes threadgroup variables
// __shared__, and takes out the words device, constant, thread and threadgroup (as macros they
// would break __device__ itself, which is __attribute__((device))).
//
// 8x8 matrices: lane l holds row l / 4, columns 2 (l % 4) and the next, the layout of mma.sync's
// accumulator. A body that uses only simdgroup_load, simdgroup_store and
// simdgroup_multiply_accumulate does not notice; Apple's layout is another one.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define METAL_FUNC __device__ __forceinline__
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef __nv_bfloat16 bfloat;
typedef __half float16_t;
typedef __nv_bfloat16 bfloat16_t;
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#define MSL_D __device__ __forceinline__

MSL_D uint3 msl_thread_position_in_threadgroup() { return threadIdx; }
MSL_D uint3 msl_threadgroup_position_in_grid() { return blockIdx; }
MSL_D uint3 msl_thread_position_in_grid() {
  return make_uint3(blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y,
                    blockIdx.z * blockDim.z + threadIdx.z);
}
MSL_D uint3 msl_threads_per_threadgroup() { return make_uint3(blockDim.x, blockDim.y, blockDim.z); }
MSL_D uint3 msl_threadgroups_per_grid() { return make_uint3(gridDim.x, gridDim.y, gridDim.z); }
// exact only where the grid is a multiple of the threadgroup (CUDA also launches the threads beyond
// the edge)
MSL_D uint3 msl_threads_per_grid() {
  return make_uint3(gridDim.x * blockDim.x, gridDim.y * blockDim.y, gridDim.z * blockDim.z);
}
MSL_D uint msl_thread_index_in_threadgroup() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
MSL_D uint msl_thread_index_in_simdgroup() { return msl_thread_index_in_threadgroup() % 32; }
MSL_D uint msl_simdgroup_index_in_threadgroup() { return msl_thread_index_in_threadgroup() / 32; }
MSL_D uint msl_simdgroups_per_threadgroup() {
  return (blockDim.x * blockDim.y * blockDim.z + 31) / 32;
}
MSL_D uint msl_threads_per_simdgroup() { return 32; }

namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
MSL_D constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return (mem_flags)((int)a | (int)b);
}
MSL_D void threadgroup_barrier(mem_flags) { __syncthreads(); }
MSL_D void simdgroup_barrier(mem_flags) { __syncwarp(); }

using ::abs;
using ::ceil;
using ::cos;
using ::exp;
using ::exp2;
using ::fabs;
using ::floor;
using ::fma;
using ::log;
using ::log2;
using ::max;
using ::min;
using ::pow;
using ::rsqrt;
using ::sin;
using ::sqrt;
using ::tanh;
namespace precise {
using ::cos;
using ::exp;
using ::log;
using ::sin;
using ::sqrt;
using ::tanh;
}  // namespace precise
namespace fast {
MSL_D float exp(float x) { return __expf(x); }
MSL_D float log(float x) { return __logf(x); }
using ::sqrt;
using ::tanh;
}  // namespace fast
template <typename T> MSL_D T clamp(T x, T lo, T hi) { return x < lo ? lo : hi < x ? hi : x; }
template <typename T> MSL_D T select(T a, T b, bool c) { return c ? b : a; }
MSL_D float mix(float a, float b, float t) { return a + (b - a) * t; }
template <typename T, typename U> MSL_D T as_type(U u) {
  static_assert(sizeof(T) == sizeof(U));
  T t;
  memcpy(&t, &u, sizeof t);
  return t;
}

// ---- simdgroup = warp; all 32 lanes must take part
#define MSL_ALL 0xffffffffu
template <typename T> MSL_D T simd_shuffle(T x, ushort l) { return __shfl_sync(MSL_ALL, x, l); }
template <typename T> MSL_D T simd_broadcast(T x, ushort l) { return __shfl_sync(MSL_ALL, x, l); }
template <typename T> MSL_D T simd_shuffle_xor(T x, ushort m) {
  return __shfl_xor_sync(MSL_ALL, x, m);
}
template <typename T> MSL_D T simd_shuffle_up(T x, ushort d) {
  return __shfl_up_sync(MSL_ALL, x, d);
}
template <typename T> MSL_D T simd_shuffle_down(T x, ushort d) {
  return __shfl_down_sync(MSL_ALL, x, d);
}
template <typename T> MSL_D T simd_sum(T x) {
  for (int m = 16; m; m >>= 1) x = x + __shfl_xor_sync(MSL_ALL, x, m);
  return x;
}
template <typename T> MSL_D T simd_product(T x) {
  for (int m = 16; m; m >>= 1) x = x * __shfl_xor_sync(MSL_ALL, x, m);
  return x;
}
template <typename T> MSL_D T simd_max(T x) {
  for (int m = 16; m; m >>= 1) {
    T y = __shfl_xor_sync(MSL_ALL, x, m);
    x = x < y ? y : x;
  }
  return x;
}
template <typename T> MSL_D T simd_min(T x) {
  for (int m = 16; m; m >>= 1) {
    T y = __shfl_xor_sync(MSL_ALL, x, m);
    x = y < x ? y : x;
  }
  return x;
}
MSL_D bool simd_any(bool b) { return __any_sync(MSL_ALL, b); }
MSL_D bool simd_all(bool b) { return __all_sync(MSL_ALL, b); }

// ---- atomics; cuda_kernel has no atomic_outputs, so plain pointers are accepted
template <typename T> struct atomic {
  T v_;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
enum memory_order { memory_order_relaxed };
#define MSL_ATOMIC(N, F)                                                       \
  template <typename T> MSL_D T N(T *p, T v, memory_order) { return F(p, v); } \
  template <typename T> MSL_D T N(atomic<T> *p, T v, memory_order) { return F(&p->v_, v); }
MSL_ATOMIC(atomic_fetch_add_explicit, atomicAdd)
MSL_ATOMIC(atomic_fetch_max_explicit, atomicMax)
MSL_ATOMIC(atomic_fetch_min_explicit, atomicMin)
MSL_ATOMIC(atomic_exchange_explicit, atomicExch)
template <typename T> MSL_D void atomic_store_explicit(atomic<T> *p, T v, memory_order) {
  *(volatile T *)&p->v_ = v;
}
template <typename T> MSL_D T atomic_load_explicit(const atomic<T> *p, memory_order) {
  return *(const volatile T *)&p->v_;
}

// ---- 8x8 matrices
struct ulong2_ {
  ulong x, y;
  MSL_D ulong2_(ulong a = 0) : x(a), y(a) {}
  MSL_D ulong2_(ulong a, ulong b) : x(a), y(b) {}
};
template <typename T, int C, int R = C> struct simdgroup_matrix {
  T t_[2];
  typedef T storage_type[2];
  MSL_D storage_type &thread_elements() { return t_; }
  simdgroup_matrix() = default;
};
typedef simdgroup_matrix<float, 8> simdgroup_float8x8;
typedef simdgroup_matrix<__half, 8> simdgroup_half8x8;
typedef simdgroup_matrix<__nv_bfloat16, 8> simdgroup_bfloat8x8;
template <typename T, int C, int R = C>
MSL_D simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T v) {
  simdgroup_matrix<T, C, R> m;
  m.t_[0] = m.t_[1] = v;
  return m;
}
template <typename T>
MSL_D void simdgroup_load(simdgroup_matrix<T, 8> &d, const T *p, ulong s = 8, ulong2_ o = 0,
                          bool tr = false) {
  const uint l = msl_thread_index_in_simdgroup(), r = l / 4, c = l % 4 * 2;
  p += o.y * s + o.x;
  d.t_[0] = tr ? p[c * s + r] : p[r * s + c];
  d.t_[1] = tr ? p[(c + 1) * s + r] : p[r * s + c + 1];
}
template <typename T>
MSL_D void simdgroup_store(simdgroup_matrix<T, 8> a, T *p, ulong s = 8, ulong2_ o = 0,
                           bool tr = false) {
  const uint l = msl_thread_index_in_simdgroup(), r = l / 4, c = l % 4 * 2;
  p += o.y * s + o.x;
  p[tr ? c * s + r : r * s + c] = a.t_[0];
  p[tr ? (c + 1) * s + r : r * s + c + 1] = a.t_[1];
}
MSL_D void msl_mma(float (&d)[2], const float (&a)[2], const float (&b)[2], const float (&c)[2]) {
  const uint l = msl_thread_index_in_simdgroup();
#ifdef MSL_CUDA_TF32X3  // tensor cores, about 22 bits of mantissa; K is permuted (slot t: 2t, slot
                        // t+4: 2t+1)
  const uint g = l / 4, t = l % 4, s0 = 8 * t + g / 2;
  const float x0 = __shfl_sync(MSL_ALL, b[0], s0), x1 = __shfl_sync(MSL_ALL, b[1], s0);
  const float y0 = __shfl_sync(MSL_ALL, b[0], s0 + 4), y1 = __shfl_sync(MSL_ALL, b[1], s0 + 4);
  const float bt[2] = {g & 1 ? x1 : x0, g & 1 ? y1 : y0};
  uint ah[2], al[2], bh[2], bl[2];
  for (int i = 0; i < 2; i++) {
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(ah[i]) : "f"(a[i]));
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(al[i]) : "f"(a[i] - __uint_as_float(ah[i])));
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bh[i]) : "f"(bt[i]));
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bl[i]) : "f"(bt[i] - __uint_as_float(bh[i])));
  }
  float e[4] = {c[0], c[1], 0, 0};
#define MSL_TF(A, B)                                                                               \
  asm volatile(                                                                                    \
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%5}, {%7,%8}, " \
      "{%0,%1,%2,%3};"                                                                             \
      : "+f"(e[0]), "+f"(e[1]), "+f"(e[2]), "+f"(e[3])                                             \
      : "r"(A[0]), "r"(0), "r"(A[1]), "r"(B[0]), "r"(B[1]))
  MSL_TF(al, bh);
  MSL_TF(ah, bl);
  MSL_TF(ah, bh);
  d[0] = e[0];
  d[1] = e[1];
#else  // the same fused multiply-adds in the same order as the CPU emulator
  float e0 = c[0], e1 = c[1];
#pragma unroll
  for (int k = 0; k < 8; k++) {
    const float x = __shfl_sync(MSL_ALL, a[k & 1], (l & ~3u) | k / 2);
    e0 = fmaf(x, __shfl_sync(MSL_ALL, b[0], k * 4 | (l & 3)), e0);
    e1 = fmaf(x, __shfl_sync(MSL_ALL, b[1], k * 4 | (l & 3)), e1);
  }
  d[0] = e0;
  d[1] = e1;
#endif
}
MSL_D uint msl_pack(const __half (&x)[2]) {
  return (uint)__half_as_ushort(x[0]) | (uint)__half_as_ushort(x[1]) << 16;
}
MSL_D uint msl_pack(const __nv_bfloat16 (&x)[2]) {
  return (uint)__bfloat16_as_ushort(x[0]) | (uint)__bfloat16_as_ushort(x[1]) << 16;
}
MSL_D uint msl_trans(uint b) {
  uint r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(b));
  return r;
}
#define MSL_MMA16(T, NAME)                                                                 \
  MSL_D void msl_mma(float (&d)[2], const T(&a)[2], const T(&b)[2], const float (&c)[2]) { \
    float e[4] = {c[0], c[1], 0, 0};                                                       \
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." NAME "." NAME                     \
                 ".f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"                       \
                 : "+f"(e[0]), "+f"(e[1]), "+f"(e[2]), "+f"(e[3])                          \
                 : "r"(msl_pack(a)), "r"(0), "r"(msl_trans(msl_pack(b))));                 \
    d[0] = e[0];                                                                           \
    d[1] = e[1];                                                                           \
  }
MSL_MMA16(__half, "f16")
MSL_MMA16(__nv_bfloat16, "bf16")
template <typename D, typename A, typename C>
MSL_D void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8> &d, simdgroup_matrix<A, 8> a,
                                         simdgroup_matrix<A, 8> b, simdgroup_matrix<C, 8> c) {
  float f[2] = {float(c.t_[0]), float(c.t_[1])};
  msl_mma(f, a.t_, b.t_, f);
  d.t_[0] = D(f[0]);
  d.t_[1] = D(f[1]);
}
}  // namespace metal
using namespace metal;
#define ulong2 metal::ulong2_

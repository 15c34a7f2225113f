// Metal's names in CUDA, put before the kernels' headers for mx.fast.cuda_kernel.
// mlx_tlstm/kernels/cuda.py does what a header cannot: it defines the attributes that a body names,
// makes threadgroup variables __shared__, and takes out the words device, constant, thread and
// threadgroup (as macros they would break __device__ itself, which is __attribute__((device))).
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
#define PACKED  // every __shared__ array is
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
}  // namespace metal
using namespace metal;

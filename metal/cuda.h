// What the kernels use of Metal's names, in CUDA: put before their headers for mx.fast.cuda_kernel.
// mlx_tlstm/kernels/cuda.py does what a header cannot: it defines the attributes that a body names,
// makes threadgroup variables __shared__, and takes out the words device, constant, thread and
// threadgroup (as macros they would break __device__ itself, which is __attribute__((device))).
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define METAL_FUNC __device__ __forceinline__
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef __nv_bfloat16 bfloat16_t;
#define PACKED  // every __shared__ array is
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#define MSL_D __device__ __forceinline__

MSL_D uint3 msl_threadgroup_position_in_grid() { return blockIdx; }
MSL_D uint3 msl_thread_position_in_grid() {
  return make_uint3(blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y,
                    blockIdx.z * blockDim.z + threadIdx.z);
}
MSL_D uint3 msl_threadgroups_per_grid() { return make_uint3(gridDim.x, gridDim.y, gridDim.z); }
MSL_D uint msl_thread_index_in_threadgroup() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
MSL_D uint msl_thread_index_in_simdgroup() { return msl_thread_index_in_threadgroup() % 32; }
MSL_D uint msl_simdgroup_index_in_threadgroup() { return msl_thread_index_in_threadgroup() / 32; }

namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
MSL_D void threadgroup_barrier(mem_flags) { __syncthreads(); }

using ::fabs;
using ::max;
using ::min;
namespace precise {
using ::exp;
using ::sqrt;
using ::tanh;
}  // namespace precise
template <typename T> MSL_D T clamp(T x, T lo, T hi) { return x < lo ? lo : hi < x ? hi : x; }

// ---- simdgroup = warp; all 32 lanes must take part
#define MSL_ALL 0xffffffffu
template <typename T> MSL_D T simd_shuffle(T x, ushort l) { return __shfl_sync(MSL_ALL, x, l); }
template <typename T> MSL_D T simd_sum(T x) {
  for (int m = 16; m; m >>= 1) x = x + __shfl_xor_sync(MSL_ALL, x, m);
  return x;
}
template <typename T> MSL_D T simd_max(T x) {
  for (int m = 16; m; m >>= 1) {
    T y = __shfl_xor_sync(MSL_ALL, x, m);
    x = x < y ? y : x;
  }
  return x;
}
}  // namespace metal
using namespace metal;

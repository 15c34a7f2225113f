// Metal's atomics in CUDA. cuda_kernel has no atomic_outputs, so plain pointers are accepted.
namespace metal {
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
}  // namespace metal

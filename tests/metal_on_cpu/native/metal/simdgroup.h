// <metal_compute> and <metal_simdgroup>: barriers, reductions and shuffles.
#pragma once
namespace metal {

enum class mem_flags : int { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
METAL_FUNC constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return (mem_flags)((int)a | (int)b);
}

#define MSL_SIMD_OPERAND(T)                                                               \
  static_assert(sizeof(typename vector_traits<T>::elem) <= 4 && !is_same<T, bool>::value, \
                "simd_*: no 64-bit and no bool operands in MSL")
#if MSL_CHECK
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
#define MSL_REDUCTION(NAME, OPERATION) \
  template <typename T> T NAME(T x) {  \
    MSL_SIMD_OPERAND(T);               \
    return x;                          \
  }
#define MSL_SHUFFLE(NAME, OPERATION)          \
  template <typename T> T NAME(T x, ushort) { \
    MSL_SIMD_OPERAND(T);                      \
    return x;                                 \
  }
template <typename T> T simd_shuffle_and_fill_up(T x, T, ushort) {
  MSL_SIMD_OPERAND(T);
  return x;
}
#else
METAL_FUNC void threadgroup_barrier(mem_flags flags) { msl_threadgroup_barrier((int)flags); }
METAL_FUNC void simdgroup_barrier(mem_flags flags) { msl_simdgroup_barrier((int)flags); }

// Lane by lane in ascending order. The GPU's order is not documented: sums may differ in the last
// bits.
template <typename T, MslOperation OP>
MSL_EMULATION void msl_compute_reduction(MslSimdgroup *group, int parity) {
  const uint active = group->active[parity];
  T total{};
  bool first = true;
  for (int lane = 0; lane < 32; lane++) {
    if (!(active >> lane & 1)) continue;
    const T value = *(T *)group->slot[parity][lane];
    T *result = (T *)group->result[parity][lane];
    if (first)
      total = value;
    else if constexpr (OP == MSL_OP_SUM || OP == MSL_OP_INCLUSIVE_SUM)
      total = total + value;
    else
      total = max(total, value);
    first = false;
    if constexpr (OP == MSL_OP_INCLUSIVE_SUM) *result = total;
  }
  if constexpr (OP != MSL_OP_INCLUSIVE_SUM)
    for (auto &result : group->result[parity]) *(T *)result = total;
}
template <typename T, MslOperation OP> MSL_EMULATION T msl_reduce(T x) {
  MSL_SIMD_OPERAND(T);
  MslThread *t = msl_thread;
  const int parity = t->operations++ & 1, lane = t->thread_index_in_simdgroup;
  *(T *)t->simdgroup->slot[parity][lane] = x;
  msl_simdgroup_operation(OP, msl_compute_reduction<T, OP>, parity);
  return *(T *)t->simdgroup->result[parity][lane];
}
#define MSL_REDUCTION(NAME, OPERATION) \
  template <typename T> METAL_FUNC T NAME(T x) { return msl_reduce<T, OPERATION>(x); }

template <typename T> struct MslShuffled {
  T value;
  uint argument;
};
template <typename T, MslOperation OP>
MSL_EMULATION void msl_compute_shuffle(MslSimdgroup *group, int parity) {
  typedef MslShuffled<T> Slot;
  const uint active = group->active[parity];
  for (uint lane = 0; lane < 32; lane++) {
    if (!(active >> lane & 1)) continue;
    const uint k = ((Slot *)group->slot[parity][lane])->argument;
    const uint source = OP == MSL_OP_SHUFFLE        ? k
                        : OP == MSL_OP_SHUFFLE_UP   ? lane - k
                        : OP == MSL_OP_SHUFFLE_DOWN ? lane + k
                                                    : (lane + k) & 31;
    T *result = (T *)group->result[parity][lane];
    if (source < 32 && (active >> source & 1))
      *result = ((Slot *)group->slot[parity][source])->value;
    else
      __builtin_memset(result, 0xff, sizeof(T));  // undefined on the GPU: NaN here
  }
}
template <typename T, MslOperation OP> MSL_EMULATION T msl_shuffle(T x, uint k) {
  MSL_SIMD_OPERAND(T);
  MslThread *t = msl_thread;
  const int parity = t->operations++ & 1, lane = t->thread_index_in_simdgroup;
  *(MslShuffled<T> *)t->simdgroup->slot[parity][lane] = MslShuffled<T>{x, k};
  msl_simdgroup_operation(OP, msl_compute_shuffle<T, OP>, parity);
  return *(T *)t->simdgroup->result[parity][lane];
}
#define MSL_SHUFFLE(NAME, OPERATION) \
  template <typename T> METAL_FUNC T NAME(T x, ushort k) { return msl_shuffle<T, OPERATION>(x, k); }
#endif

MSL_REDUCTION(simd_sum, MSL_OP_SUM)
MSL_REDUCTION(simd_max, MSL_OP_MAX)
MSL_REDUCTION(simd_prefix_inclusive_sum, MSL_OP_INCLUSIVE_SUM)
MSL_SHUFFLE(simd_shuffle, MSL_OP_SHUFFLE)
MSL_SHUFFLE(simd_shuffle_up, MSL_OP_SHUFFLE_UP)
MSL_SHUFFLE(simd_shuffle_down, MSL_OP_SHUFFLE_DOWN)
MSL_SHUFFLE(simd_shuffle_rotate_down, MSL_OP_ROTATE_DOWN)

#if !MSL_CHECK
template <typename T> METAL_FUNC T simd_shuffle_and_fill_up(T x, T fill, ushort k) {
  const T from_below = simd_shuffle_up(x, k);
  const T from_fill = simd_shuffle_rotate_down(fill, (ushort)(32 - k));
  return msl_thread->thread_index_in_simdgroup < k ? from_fill : from_below;
}
#endif

}  // namespace metal

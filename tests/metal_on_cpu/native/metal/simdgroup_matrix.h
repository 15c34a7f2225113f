// <metal_simdgroup_matrix>: 8x8 matrices that the lanes of a simdgroup hold together.
#pragma once
namespace metal {

template <typename T, int Cols, int Rows = Cols> struct simdgroup_matrix {
  static_assert(Cols == 8 && Rows == 8, "simdgroup_matrix is 8x8");
  static_assert(is_floating_point<T>::value, "simdgroup_matrix: float, half or bfloat");
  typedef vec<T, 2> storage_type;
  storage_type elements_;
  thread storage_type &thread_elements() thread { return elements_; }
#if MSL_CHECK
  simdgroup_matrix() {}
  explicit simdgroup_matrix(T) {}
#else
  simdgroup_matrix() { __builtin_memset(&elements_, 0xff, sizeof elements_); }  // NaN
  explicit simdgroup_matrix(T diagonal) {
    const uint lane = msl_thread->thread_index_in_simdgroup, r = row(lane), c = column(lane);
    elements_[0] = r == c ? diagonal : (T)0;
    elements_[1] = r == c + 1 ? diagonal : (T)0;
  }
  // Apple does not document which lane holds which two elements of a row; MLX relies on this
  // layout (steel/gemm/mma.h, get_coord).
  static uint row(uint lane) { return ((lane / 4) & 4) + (lane / 2) % 4; }
  static uint column(uint lane) { return ((lane / 4) & 2) * 2 + (lane % 2) * 2; }
#endif
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <typename T, int C, int R = C>
METAL_FUNC simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, C, R> m;
  m.thread_elements()[0] = value;
  m.thread_elements()[1] = value;
  return m;
}
template <typename T, int C, int R = C>
METAL_FUNC simdgroup_matrix<T, C, R> make_diagonal_simdgroup_matrix(T value) {
  return simdgroup_matrix<T, C, R>(value);
}

#if MSL_CHECK
#define MSL_MATRIX_MEMORY(SPACE)                                                              \
  template <typename T>                                                                       \
  void simdgroup_load(thread simdgroup_matrix<T, 8, 8> &d, const SPACE T *source,             \
                      ulong elements_per_row = 8, ulong2 origin = 0, bool transpose = false); \
  template <typename T>                                                                       \
  void simdgroup_store(simdgroup_matrix<T, 8, 8> a, SPACE T *destination,                     \
                       ulong elements_per_row = 8, ulong2 origin = 0, bool transpose = false);
MSL_MATRIX_MEMORY(device)
MSL_MATRIX_MEMORY(threadgroup)
template <typename D, typename A, typename B, typename C>
void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<A, 8, 8> a,
                                   simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c);
template <typename D, typename A, typename B>
void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<A, 8, 8> a,
                        simdgroup_matrix<B, 8, 8> b);
#else

// ---- memory: each lane moves its two elements
struct MslMatrixAddress {
  ulong address, elements_per_row, transpose;
};
MSL_EMULATION inline void msl_compare_addresses(MslSimdgroup *group, int parity) {
  const uint active = group->active[parity];
  const int first = __builtin_ctz(active);
  for (int lane = first + 1; lane < 32; lane++)
    if ((active >> lane & 1) &&
        __builtin_memcmp(group->slot[parity][lane], group->slot[parity][first],
                         sizeof(MslMatrixAddress)))
      msl_fail("simdgroup_load/store: the lanes pass different arguments");
  if (active != ~0u) msl_fail("simdgroup_load/store: not all 32 lanes are active");
}
template <typename T>
MSL_EMULATION void msl_check_matrix_access(const T *corner, ulong elements_per_row, bool transpose,
                                           MslOperation operation, const T *const (&mine)[2],
                                           const void *caller) {
  MslThread *t = msl_thread;
  const int parity = t->operations++ & 1;
  *(MslMatrixAddress *)t->simdgroup->slot[parity][t->thread_index_in_simdgroup] = {
      (ulong)corner, elements_per_row, transpose};
  msl_simdgroup_operation(operation, msl_compare_addresses, parity);
  for (const T *element : mine)
    msl_simdgroup_access(element, sizeof(T), operation == MSL_OP_STORE, caller);
}
template <typename T>
MSL_EMULATION void simdgroup_load(simdgroup_matrix<T, 8, 8> &d, const T *source,
                                  ulong elements_per_row = 8, ulong2 origin = 0,
                                  bool transpose = false) {
  typedef simdgroup_matrix<T, 8, 8> M;
  const uint lane = msl_thread->thread_index_in_simdgroup, r = M::row(lane), c = M::column(lane);
  const T *corner = source + origin[1] * elements_per_row + origin[0];
  const T *first = corner + (transpose ? c * elements_per_row + r : r * elements_per_row + c);
  const T *const mine[2] = {first, first + (transpose ? elements_per_row : 1)};
  if (msl_sanitize)
    msl_check_matrix_access(corner, elements_per_row, transpose, MSL_OP_LOAD, mine,
                            __builtin_return_address(0));
  d.elements_[0] = *mine[0];
  d.elements_[1] = *mine[1];
}
template <typename T>
MSL_EMULATION void simdgroup_store(simdgroup_matrix<T, 8, 8> a, T *destination,
                                   ulong elements_per_row = 8, ulong2 origin = 0,
                                   bool transpose = false) {
  typedef simdgroup_matrix<T, 8, 8> M;
  const uint lane = msl_thread->thread_index_in_simdgroup, r = M::row(lane), c = M::column(lane);
  T *corner = destination + origin[1] * elements_per_row + origin[0];
  T *first = corner + (transpose ? c * elements_per_row + r : r * elements_per_row + c);
  T *second = first + (transpose ? elements_per_row : 1);
  const T *const mine[2] = {first, second};
  if (msl_sanitize)
    msl_check_matrix_access<T>(corner, elements_per_row, transpose, MSL_OP_STORE, mine,
                               __builtin_return_address(0));
  *first = a.elements_[0];
  *second = a.elements_[1];
}

// ---- products, in float whatever the operands
struct MslMultiplied {  // by one lane
  float a[2], b[2], c[2];
};
MSL_EMULATION inline void msl_compute_product(MslSimdgroup *group, int parity) {
  if (group->active[parity] != ~0u)
    msl_fail("simdgroup_multiply_accumulate: not all 32 lanes are active");
  typedef simdgroup_matrix<float, 8, 8> M;
  alignas(32) float A[8][8], B[8][8], C[8][8];
  for (uint lane = 0; lane < 32; lane++) {
    const MslMultiplied *m = (const MslMultiplied *)group->slot[parity][lane];
    const uint r = M::row(lane), c = M::column(lane);
    for (int i = 0; i < 2; i++) {
      A[r][c + i] = m->a[i];
      B[r][c + i] = m->b[i];
      C[r][c + i] = m->c[i];
    }
  }
  for (int r = 0; r < 8; r++)
    for (int k = 0; k < 8; k++)
      for (int c = 0; c < 8; c++) C[r][c] = __builtin_fmaf(A[r][k], B[k][c], C[r][c]);
  for (uint lane = 0; lane < 32; lane++)
    __builtin_memcpy(group->result[parity][lane], &C[M::row(lane)][M::column(lane)],
                     2 * sizeof(float));
}
template <typename D, typename A, typename B, typename C>
MSL_EMULATION void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d,
                                                 simdgroup_matrix<A, 8, 8> a,
                                                 simdgroup_matrix<B, 8, 8> b,
                                                 simdgroup_matrix<C, 8, 8> c) {
  MslThread *t = msl_thread;
  const int parity = t->operations++ & 1, lane = t->thread_index_in_simdgroup;
  *(MslMultiplied *)t->simdgroup->slot[parity][lane] = {
      {(float)a.elements_[0], (float)a.elements_[1]},
      {(float)b.elements_[0], (float)b.elements_[1]},
      {(float)c.elements_[0], (float)c.elements_[1]}};
  msl_simdgroup_operation(MSL_OP_MULTIPLY, msl_compute_product, parity);
  const float *result = (const float *)t->simdgroup->result[parity][lane];
  d.elements_[0] = (D)result[0];
  d.elements_[1] = (D)result[1];
}
template <typename D, typename A, typename B>
METAL_FUNC void simdgroup_multiply(simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<A, 8, 8> a,
                                   simdgroup_matrix<B, 8, 8> b) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>((D)0));
}
#endif

}  // namespace metal

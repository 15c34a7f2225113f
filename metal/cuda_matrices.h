// 8x8 matrices in CUDA: lane l holds row l / 4, columns 2 (l % 4) and the next, the layout of
// mma.sync's accumulator. A body that uses only simdgroup_load, simdgroup_store and
// simdgroup_multiply_accumulate does not notice; Apple's layout is another one.
namespace metal {
struct ulong2_ {
  ulong x, y;
  MSL_D ulong2_(ulong a = 0) : x(a), y(a) {}
  MSL_D ulong2_(ulong a, ulong b) : x(a), y(b) {}
};
template <typename T, int C, int R = C> struct simdgroup_matrix {
  T t_[2];
  simdgroup_matrix() = default;
};
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
  // The same fused multiply-adds in the same order as the CPU emulator.
  float e0 = c[0], e1 = c[1];
#pragma unroll
  for (int k = 0; k < 8; k++) {
    const float x = __shfl_sync(MSL_ALL, a[k & 1], (l & ~3u) | k / 2);
    e0 = fmaf(x, __shfl_sync(MSL_ALL, b[0], k * 4 | (l & 3)), e0);
    e1 = fmaf(x, __shfl_sync(MSL_ALL, b[1], k * 4 | (l & 3)), e1);
  }
  d[0] = e0;
  d[1] = e1;
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
#define ulong2 metal::ulong2_

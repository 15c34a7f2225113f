// The memory cell: sums over a row, and what its taps read and are read by.
//
// One simdgroup works on a row (an example's location): its lanes stride over the M channels, and
// over the taps where there is one number for each.
#include "geometry.h"

// Inside the root of both normalisations.
constexpr constant float EPSILON = 1e-5f;

// Template argument NORM.
constexpr constant int CHANNEL_NORM = 1;
constexpr constant int LAYER_NORM = 2;

// Sigmoid without overflow.
METAL_FUNC float logistic(float x) {
  const float e = metal::precise::exp(-metal::fabs(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

// Sum over the simdgroup, in every lane; with WIDE over the threadgroup, whose every thread calls.
// `partial` holds a number for each simdgroup and serves one call, so that one barrier is enough.
template <bool WIDE, int SIMDGROUPS>
METAL_FUNC float total(float x, threadgroup float* partial, int simdgroup, int lane) {
  x = metal::simd_sum(x);
  if (WIDE) {
    if (lane == 0) partial[simdgroup] = x;
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    x = metal::simd_sum(lane < SIMDGROUPS ? partial[lane] : 0.0f);
  }
  return x;
}

// A weighted sum of rows, one term for each tap; lane l keeps the terms l, l + 32, ...
template <typename G>
struct Taps {
  static constexpr constant int SLOTS = (G::TAPS + 31) / 32;
  float weight[SLOTS];
  int row[SLOTS];  // negative: no such term

  // Lanes that have a term in a slot; the rest of the last slot's have none.
  static METAL_FUNC int lanes(int slot) {
    return slot + 1 < SLOTS ? 32 : G::TAPS - 32 * (SLOTS - 1);
  }
};

// Adds channels lane, lane + 32, ... of the weighted sum of the rows of `values` to `sum`.
template <int M, typename G, typename Values>
METAL_FUNC void add_rows(Taps<G> taps, Values values, int lane, thread float* sum) {
#pragma unroll
  for (int s = 0; s < Taps<G>::SLOTS; ++s) {
    for (int owner = 0; owner < Taps<G>::lanes(s); ++owner) {
      const int row = metal::simd_shuffle(taps.row[s], ushort(owner));
      const float weight = metal::simd_shuffle(taps.weight[s], ushort(owner));
      if (row < 0) continue;
#pragma unroll
      for (int c = 0; c < (M + 31) / 32; ++c) {
        const int m = lane + 32 * c;
        if (m < M) sum[c] += weight * values[size_t(row) * M + m];
      }
    }
  }
}

// What `row` reads of the memory (Eq. 16, 25): the nearest rows, weighted by the softmax of its
// logits (Eq. 15).
template <typename G, typename Logits>
METAL_FUNC Taps<G> memory_taps(int row, Logits logits, int lane) {
  const int p = row % G::LOCATIONS;
  Taps<G> taps;
  float largest = -INFINITY;
#pragma unroll
  for (int s = 0; s < Taps<G>::SLOTS; ++s) {
    const int tap = lane + 32 * s;
    const bool exists = tap < G::TAPS;
    taps.weight[s] = exists ? float(logits[tap]) : -INFINITY;
    taps.row[s] = exists ? row - p + G::index(G::clamped(G::source(G::location(p), tap))) : -1;
    largest = metal::max(largest, taps.weight[s]);
  }
  largest = metal::simd_max(largest);
  float sum = 0.0f;
#pragma unroll
  for (int s = 0; s < Taps<G>::SLOTS; ++s) {
    taps.weight[s] = metal::precise::exp(taps.weight[s] - largest);
    sum += taps.weight[s];
  }
  sum = metal::simd_sum(sum);
#pragma unroll
  for (int s = 0; s < Taps<G>::SLOTS; ++s) taps.weight[s] /= sum;
  return taps;
}

// First and last of an axis' taps through which `reader` reads p: at the tensor's border also
// those that would lie beyond it.
METAL_FUNC int first_tap(int p, int reader, int K) {
  return p == 0 ? 0 : p - reader + K / 2;
}

METAL_FUNC int last_tap(int p, int reader, int P, int K) {
  return p == P - 1 ? K - 1 : p - reader + K / 2;
}

// The adjoint of memory_taps: the rows that read `row`, each weighted by the sum of its kernel
// over the taps through which it does. The reader through each tap of the unbounded tensor is one
// term; repeating the boundary adds taps, but no readers.
template <int P0, int P1, int P2, int K0, int K1, int K2, typename Kernels>
METAL_FUNC Taps<Geometry<P0, P1, P2, K0, K1, K2>> reader_taps(
    int row, Kernels kernels, int lane) {
  typedef Geometry<P0, P1, P2, K0, K1, K2> G;
  const int index = row % G::LOCATIONS;
  const Location p = G::location(index);
  Taps<G> taps;
#pragma unroll
  for (int s = 0; s < Taps<G>::SLOTS; ++s) {
    const int term = lane + 32 * s;
    const Location r = G::reader(p, term);
    taps.weight[s] = 0.0f;
    taps.row[s] = -1;
    if (term >= G::TAPS || !G::inside(r)) continue;
    taps.row[s] = row - index + G::index(r);
    for (int x = first_tap(p.x, r.x, K0); x <= last_tap(p.x, r.x, P0, K0); ++x)
      for (int y = first_tap(p.y, r.y, K1); y <= last_tap(p.y, r.y, P1, K1); ++y)
        for (int z = first_tap(p.z, r.z, K2); z <= last_tap(p.z, r.z, P2, K2); ++z)
          taps.weight[s] += kernels[size_t(taps.row[s]) * G::TAPS + (x * K1 + y) * K2 + z];
  }
  return taps;
}

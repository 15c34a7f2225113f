// Gradient of the memory cell update. It opens with the part of the gradient of C_t that the step
// after handed over: a gather over neighbouring locations, whose own gradients other threadgroups
// of that step's launch wrote. What is handed to the step before is gathered by its launch, or by
// memory_gather for the initial state.
//
// Inputs; those of a later step, an output or a cell may be one axis of anything where there is
// none, others that a variant does not read any float buffer
//   d_hidden      [B, P0, P1, P2, M] float   of H_t
//   d_output      [B, M] float               of H_t at the last location
//   d_cell        [B, P0, P1, P2, M] float   of C_t, beside what the step after hands over
//   later_carried [B, P0, P1, P2, M] float   of the step after, as `carried` below
//   later_kernels [B, P0, P1, P2, TAPS] float   likewise; CONVOLVE
//   later_gain, later_bias [B, P0, P1, P2, M] float   likewise; NORM
//   activation    [B, P0, P1, P2, O] T       channels g, i, f, o (M each) and q (TAPS)
//   cell_before, cell [B, P0, P1, P2, M] float   C_{t-1} and C_t
//   statistics    what memory_forward wrote; NORM
//   norm_gain, norm_bias [P0, P1, P2, M]     any float type; NORM
// Outputs
//   d_activation  [B, P0, P1, P2, O] T
//   carried       [B, P0, P1, P2, M] float   gradient of what the forget gate multiplies
//   kernels       [B, P0, P1, P2, TAPS] float   the softmax of q; [1] and zero without CONVOLVE
//   gain_sum, bias_sum [B, P0, P1, P2, M] float   of an example's gradients of norm_gain and
//                 norm_bias over this step and those after; [1] and zero without NORM
// Template: T, M, P0 ... K2; CONVOLVE (memory convolution, O = 4M + TAPS, else 4M);
//   NORM (0, CHANNEL_NORM or LAYER_NORM); SIMDGROUPS, at most 32
// Threadgroup: 32 * SIMDGROUPS threads, a simdgroup a row of M channels
// Grid: ceil(B * LOCATIONS / SIMDGROUPS) threadgroups; for LAYER_NORM B, one an example, whose
//   simdgroups walk its rows
//
// Row numbers are 32-bit, element offsets 64-bit.
#include "memory.h"

typedef Geometry<P0, P1, P2, K0, K1, K2> G;
constexpr int O = 4 * M + (CONVOLVE ? G::TAPS : 0);
constexpr int CHANNELS = (M + 31) / 32;  // of a lane
constexpr bool WIDE = NORM == LAYER_NORM;
constexpr int ROWS = WIDE ? G::LOCATIONS : SIMDGROUPS;  // of a threadgroup
constexpr float COUNT = WIDE ? float(G::LOCATIONS) * M : M;

const bool has_output = d_output_ndim > 1;
const bool has_cell = d_cell_ndim > 1;
const bool has_later = later_carried_ndim > 1;
const int lane = thread_index_in_simdgroup;
const int simdgroup = simdgroup_index_in_threadgroup;
const int first = int(threadgroup_position_in_grid.x) * ROWS + simdgroup;
const int end = metal::min(
    (int(threadgroup_position_in_grid.x) + 1) * ROWS, cell_before_shape[0] * G::LOCATIONS);
threadgroup float partial_sum[SIMDGROUPS];
threadgroup float partial_along[SIMDGROUPS];

// First through H_t to C_t's normalised value C_hat. Without WIDE there is one row at most, and its
// gradient stays here; with WIDE each thread parks it in `carried` and reads it back itself.
float d_C[CHANNELS];
float sum = 0.0f;
float along = 0.0f;
float mean = 0.0f;
float scale = 1.0f;
for (int row = first; row < end; row += SIMDGROUPS) {
  const int p = row % G::LOCATIONS;
  const int example = row / G::LOCATIONS;
  const size_t start = size_t(row) * M;
  if (NORM != 0) {
    const size_t slot = 2 * size_t(WIDE ? example : row);
    mean = statistics[slot];
    scale = statistics[slot + 1];
  }
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    const int m = lane + 32 * c;
    if (m >= M) break;
    const size_t at = size_t(p) * M + m;
    const float gain = NORM != 0 ? float(norm_gain[at]) : 1.0f;
    const float bias = NORM != 0 ? float(norm_bias[at]) : 0.0f;
    const float C_hat = (cell[start + m] - mean) * scale;
    const float Z = metal::precise::tanh(C_hat * gain + bias);
    const float o = logistic(float(activation[size_t(row) * O + 3 * M + m]));
    float d_H = d_hidden[start + m];
    if (has_output && p == G::LOCATIONS - 1) d_H += d_output[size_t(example) * M + m];
    const float d_N = d_H * o * (1.0f - Z * Z);
    d_activation[size_t(row) * O + 3 * M + m] = T(d_H * Z * o * (1.0f - o));
    d_C[c] = d_N * gain;
    if (NORM != 0) {
      sum += d_C[c];
      along += d_C[c] * C_hat;
      gain_sum[start + m] = d_N * C_hat + (has_later ? later_gain[start + m] : 0.0f);
      bias_sum[start + m] = d_N + (has_later ? later_bias[start + m] : 0.0f);
    }
    if (WIDE) carried[start + m] = d_C[c];
  }
}
if (NORM != 0) {
  sum = total<WIDE, SIMDGROUPS>(sum, partial_sum, simdgroup, lane) / COUNT;
  along = total<WIDE, SIMDGROUPS>(along, partial_along, simdgroup, lane) / COUNT;
}

for (int row = first; row < end; row += SIMDGROUPS) {
  const size_t start = size_t(row) * M;
  const auto A = activation + size_t(row) * O;
  const auto d_A = d_activation + size_t(row) * O;
  // C_t: through its normalised value, from outside, and from the step after.
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    const int m = lane + 32 * c;
    if (m >= M) break;
    if (NORM != 0) {
      const float d_hat = WIDE ? carried[start + m] : d_C[c];
      const float C_hat = (cell[start + m] - mean) * scale;
      d_C[c] = (d_hat - sum - C_hat * along) * scale;
    }
    if (has_cell) d_C[c] += d_cell[start + m];
    if (!CONVOLVE && has_later) d_C[c] += later_carried[start + m];
  }
  if (CONVOLVE && has_later)
    add_rows<M>(
        reader_taps<P0, P1, P2, K0, K1, K2>(row, later_kernels, lane), later_carried, lane, d_C);

  // New content and input gate, then what the forget gate multiplied.
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    const int m = lane + 32 * c;
    if (m >= M) break;
    const float g = metal::precise::tanh(float(A[m]));
    const float i = logistic(float(A[M + m]));
    d_A[m] = T(d_C[c] * i * (1.0f - g * g));
    d_A[M + m] = T(d_C[c] * g * i * (1.0f - i));
    d_C[c] *= logistic(float(A[2 * M + m]));
    carried[start + m] = d_C[c];
  }

  // The memory convolution once more, and the kernel's gradient from the same rows: an inner
  // product for each tap, then through the softmax.
  float C_conv[CHANNELS];
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) C_conv[c] = 0.0f;
  if (CONVOLVE) {
    const Taps<G> taps = memory_taps<G>(row, A + 4 * M, lane);
    float d_Q[Taps<G>::SLOTS];
    float mixed = 0.0f;
#pragma unroll
    for (int s = 0; s < Taps<G>::SLOTS; ++s) {
      for (int owner = 0; owner < Taps<G>::lanes(s); ++owner) {
        const int source = metal::simd_shuffle(taps.row[s], ushort(owner));
        const float weight = metal::simd_shuffle(taps.weight[s], ushort(owner));
        float product = 0.0f;
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
          const int m = lane + 32 * c;
          if (m >= M) break;
          const float before = cell_before[size_t(source) * M + m];
          C_conv[c] += weight * before;
          product += d_C[c] * before;
        }
        product = metal::simd_sum(product);
        mixed += weight * product;
        if (lane == owner) d_Q[s] = product;
      }
    }
#pragma unroll
    for (int s = 0; s < Taps<G>::SLOTS; ++s) {
      const int tap = lane + 32 * s;
      if (tap >= G::TAPS) break;
      d_A[4 * M + tap] = T(taps.weight[s] * (d_Q[s] - mixed));
      kernels[size_t(row) * G::TAPS + tap] = taps.weight[s];
    }
  }

#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    const int m = lane + 32 * c;
    if (m >= M) break;
    const float before = CONVOLVE ? C_conv[c] : cell_before[start + m];
    const float f = logistic(float(A[2 * M + m]));
    d_A[2 * M + m] = T(d_C[c] * before * (1.0f - f));  // d_C holds the factor f by now
  }
  // What a variant does not hand over is one zero.
  if (row == 0 && lane == 0) {
    if (!CONVOLVE) kernels[0] = 0.0f;
    if (NORM == 0) gain_sum[0] = bias_sum[0] = 0.0f;
  }
}

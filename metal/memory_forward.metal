// Memory cell update: gates, memory-cell convolution, new cell, normalisation, new hidden state
// (Eq. 11-13 without memory convolution, 15-21, 25, 31).
//
// Inputs
//   activation    [B, P0, P1, P2, O] T       channels g, i, f, o (M each) and q (TAPS)
//   cell_before   [B, P0, P1, P2, M] float
//   norm_gain     [P0, P1, P2, M]            any float type; not read without normalisation
//   norm_bias     [P0, P1, P2, M]            likewise
// Outputs
//   hidden        [B, P0, P1, P2, M] T
//   cell          [B, P0, P1, P2, M] float
//   far_corner    [B, M] T                   hidden at the last location
//   statistics    mean and 1 / deviation, float: [B, P0, P1, P2, 2] for CHANNEL_NORM, [B, 2] for
//                 LAYER_NORM, else [2], 0 and 1
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

const int lane = thread_index_in_simdgroup;
const int simdgroup = simdgroup_index_in_threadgroup;
const int first = int(threadgroup_position_in_grid.x) * ROWS + simdgroup;
const int end = metal::min(
    (int(threadgroup_position_in_grid.x) + 1) * ROWS, cell_before_shape[0] * G::LOCATIONS);
threadgroup float partial_sum[SIMDGROUPS];
threadgroup float partial_squares[SIMDGROUPS];

// The row's new cell. Without WIDE there is one row at most, and it stays here; with WIDE each
// thread reads back what it wrote itself.
float C[CHANNELS];
float sum = 0.0f;
for (int row = first; row < end; row += SIMDGROUPS) {
  const auto A = activation + size_t(row) * O;
  const size_t start = size_t(row) * M;
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) C[c] = 0.0f;
  if (CONVOLVE) add_rows<M>(memory_taps<G>(row, A + 4 * M, lane), cell_before, lane, C);
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    const int m = lane + 32 * c;
    if (m >= M) break;
    const float carried = CONVOLVE ? C[c] : cell_before[start + m];
    const float g = metal::precise::tanh(float(A[m]));
    const float i = logistic(float(A[M + m]));
    const float f = logistic(float(A[2 * M + m]));
    C[c] = g * i + carried * f;  // Eq. 18 (Eq. 12 without memory convolution)
    cell[start + m] = C[c];
    sum += C[c];
  }
}

float mean = 0.0f;
float scale = 1.0f;
if (NORM != 0) {
  mean = total<WIDE, SIMDGROUPS>(sum, partial_sum, simdgroup, lane) / COUNT;
  float squares = 0.0f;
  for (int row = first; row < end; row += SIMDGROUPS) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      const int m = lane + 32 * c;
      if (m >= M) break;
      const float centred = (WIDE ? cell[size_t(row) * M + m] : C[c]) - mean;
      squares += centred * centred;
    }
  }
  squares = total<WIDE, SIMDGROUPS>(squares, partial_squares, simdgroup, lane);
  scale = 1.0f / metal::precise::sqrt(squares / COUNT + EPSILON);
}

for (int row = first; row < end; row += SIMDGROUPS) {
  const int p = row % G::LOCATIONS;
  const int example = row / G::LOCATIONS;
  const size_t start = size_t(row) * M;
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    const int m = lane + 32 * c;
    if (m >= M) break;
    float normalized = WIDE ? cell[start + m] : C[c];
    if (NORM != 0) {
      const size_t at = size_t(p) * M + m;
      normalized = (normalized - mean) * scale;  // Eq. 21
      normalized = normalized * float(norm_gain[at]) + float(norm_bias[at]);  // Eq. 20
    }
    const float o = logistic(float(activation[size_t(row) * O + 3 * M + m]));
    const T h = T(metal::precise::tanh(normalized) * o);  // Eq. 19 (Eq. 31 with a norm)
    hidden[start + m] = h;
    if (p == G::LOCATIONS - 1) far_corner[size_t(example) * M + m] = h;
  }
  // Written once: by each row, by an example's first row, or by the first row of all.
  if (lane == 0 && (NORM == CHANNEL_NORM || (WIDE ? p : row) == 0)) {
    const size_t slot = 2 * size_t(WIDE ? example : row);
    statistics[slot] = mean;
    statistics[slot + 1] = scale;
  }
}

// Gradient of C_{t-1} from what memory_backward of step t hands over (Eq. 16, 25, transposed): each
// location gathers from the locations that read it, with the boundary repeated. Only the initial
// state needs this launch; any other step's gather opens its own memory_backward.
//
// Inputs
//   carried       [B, P0, P1, P2, M] float   gradient of the convolved memory
//   kernels       [B, P0, P1, P2, TAPS] float
// Output
//   d_cell_before [B, P0, P1, P2, M] float
// Template: M, P0 ... K2; SIMDGROUPS
// Threadgroup: 32 * SIMDGROUPS threads, a simdgroup a row of M channels
// Grid: ceil(B * LOCATIONS / SIMDGROUPS) threadgroups
//
// Row numbers are 32-bit, element offsets 64-bit.
#include "memory.h"

constexpr int CHANNELS = (M + 31) / 32;  // of a lane

const int lane = thread_index_in_simdgroup;
const int row = threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup;
if (row >= carried_shape[0] * P0 * P1 * P2) return;

float d_C[CHANNELS];
#pragma unroll
for (int c = 0; c < CHANNELS; ++c) d_C[c] = 0.0f;
add_rows<M>(reader_taps<P0, P1, P2, K0, K1, K2>(row, kernels, lane), carried, lane, d_C);
#pragma unroll
for (int c = 0; c < CHANNELS; ++c) {
  const int m = lane + 32 * c;
  if (m < M) d_cell_before[size_t(row) * M + m] = d_C[c];
}

// Gradient of the tRNN's activation, H_t = tanh(A_t) (Eq. 7), from H_t itself.
//
// Inputs
//   d_hidden      [B, P0, P1, P2, M] float   of H_t
//   d_output      [B, M] float               of H_t at the last location; one axis of anything if
//                                            it has no gradient
//   hidden        [B, P0, P1, P2, M] T       H_t
// Output
//   d_activation  [B, P0, P1, P2, M] T
// Template: T, M, P0 ... K2
// Threadgroup: any number of threads, each with one element
// Grid: at least B * LOCATIONS * M threads
//
// Element numbers are 32-bit.
#include "geometry.h"

typedef Geometry<P0, P1, P2, K0, K1, K2> G;
const int element = thread_position_in_grid.x;
if (element < hidden_shape[0] * G::LOCATIONS * M) {
  const int row = element / M;
  float d_H = d_hidden[element];
  if (d_output_ndim > 1 && row % G::LOCATIONS == G::LOCATIONS - 1)
    d_H += d_output[row / G::LOCATIONS * M + element % M];
  const float H = hidden[element];
  d_activation[element] = T(d_H * (1.0f - H * H));
}

// The adjoint of convolution_unfold: gradients of the hidden state and the projected input from
// that of the windows, as a gather, so that no two threads add to one element.
//
//   d_read[row, m] = sum over taps of d_windows[reader(row, tap), tap · M + m]
//
// with a row for each example and location, then one for each example's corner.
//
// Input       d_windows [B · LOCATIONS, <K> · M], T
// Outputs     d_hidden [B, *P, M], d_projected [B, M], both float
// Template    T: float, half or bfloat16_t; M; P0 … K2: the geometry
// Threadgroup any number of threads, each with four neighbours
// Grid        at least B · (LOCATIONS + 1) · ceil(M / 4) threads
//
// Thread numbers are 32-bit, element offsets 64-bit.
#include "packs.h"

typedef Geometry<P0, P1, P2, K0, K1, K2> G;
constexpr int PACKS = Padded<M>::SIZE / 4;  // of a row's channels

const int pack = thread_position_in_grid.x;
const int row = pack / PACKS;
const int m = pack % PACKS * 4;
const int hidden_rows = d_windows_shape[0];
const bool of_hidden = row < hidden_rows;
const int example = of_hidden ? row / G::LOCATIONS : row - hidden_rows;
if (example < hidden_rows / G::LOCATIONS) {
  const Location location = of_hidden ? G::location(row % G::LOCATIONS) : G::corner();
  // The location's row, which for a corner is none of the windows'.
  const ptrdiff_t start = ptrdiff_t(example) * G::LOCATIONS + G::index(location);
  Pack<float> sum = {};
#pragma unroll
  for (int tap = 0; tap < G::TAPS; ++tap) {
    if (!G::inside(G::reader(location, tap))) continue;
    const Pack<T> term =
        load_row<M>(d_windows + ((start - G::shift(tap)) * G::TAPS + tap) * M, m);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum.item[j] += float(term.item[j]);
  }
  store_row<M>(
      of_hidden ? d_hidden + size_t(row) * M : d_projected + size_t(example) * M, m, sum);
}

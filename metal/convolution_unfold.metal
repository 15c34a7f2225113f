// The windows of the cross-layer convolution (Eq. 22), where MLX's own matrix product multiplies
// them by the weight:
//
//   windows[row, tap · M + m] = channel m of what the tap reads for the row
//
// with a row for each example and location.
//
// Inputs      hidden [B, *P, M], projected [B, M], both T
// Output      windows [B · LOCATIONS, <K> · M], T
// Template    T: float, half or bfloat16_t; M; P0 … K2: the geometry
// Threadgroup any number of threads, each with four neighbours
// Grid        at least B · LOCATIONS · <K> · ceil(M / 4) threads
//
// Thread numbers are 32-bit, element offsets 64-bit.
#include "packs.h"

typedef Geometry<P0, P1, P2, K0, K1, K2> G;
constexpr int PACKS = Padded<M>::SIZE / 4;  // of a tap's channels

const int pack = thread_position_in_grid.x;
const int row = pack / (G::TAPS * PACKS);
const int tap = pack / PACKS % G::TAPS;
const int m = pack % PACKS * 4;
if (row < hidden_shape[0] * G::LOCATIONS)
  store_row<M>(
      windows + (size_t(row) * G::TAPS + tap) * M, m,
      read_tap<T, G, M>(hidden, projected, row, G::location(row % G::LOCATIONS), tap, m));

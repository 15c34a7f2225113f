// Gradients of the cross-layer convolution (Eq. 22, 24) for the hidden state and the projected
// input, one matrix product.
//
//   d_read[row, m] = sum over kk of d_activation[reader(row, tap), o] · weight[o, tap, m]
//
// with kk = tap · O + o (O rounded up to a multiple of four), and a row for each example and
// location, then one for each example's corner: what reads a row through a tap is gathered, so that
// no two threads add to one element.
//
// Inputs      d_activation [B, *P, O], weight [O, *K, M], both T
// Outputs     d_hidden [B, *P, M], d_projected [B, M], both float
// Template    T: float, half or bfloat16_t; M, O; P0 … K2: the geometry; BM, BN, BK: the tile and
//             its slices; WM, WN, WK: its simdgroups
// Grid        ceil(B · (LOCATIONS + 1) / BM) x ceil(M / BN) threadgroups
// Threadgroup 32 · WM · WN · WK threads
#include "tiles.h"

typedef Geometry<P0, P1, P2, K0, K1, K2> G;
typedef TileProduct<T, BM, BN, BK, WM, WN, WK, false, false> Tile;
constexpr int PADDED = Padded<O>::SIZE;
constexpr int DEPTH = G::TAPS * PADDED;
typedef Share<BM, BK, Tile::THREADS> RowShare;
typedef Share<BK, BN, Tile::THREADS> WeightShare;

threadgroup T row_slice[Tile::LEFT_SIZE];
threadgroup T weight_slice[Tile::RIGHT_SIZE];
threadgroup float strips[Tile::STRIPS_SIZE];

const int self = thread_index_in_threadgroup;
const int batch = d_activation_shape[0];
const int hidden_rows = batch * G::LOCATIONS;
const int rows = hidden_rows + batch;
const int first_row = threadgroup_position_in_grid.x * BM;
const int first_channel = threadgroup_position_in_grid.y * BN;

Location location[RowShare::PASSES];
ptrdiff_t start[RowShare::PASSES];  // row of d_activation at the location, which may be a corner
#pragma unroll
for (int i = 0; i < RowShare::PASSES; ++i) {
  const int row = first_row + RowShare::row(self, i);
  const bool of_hidden = row < hidden_rows;
  const int example = of_hidden ? row / G::LOCATIONS : row - hidden_rows;
  location[i] = of_hidden ? G::location(row % G::LOCATIONS) : G::corner();
  start[i] = ptrdiff_t(example) * G::LOCATIONS + G::index(location[i]);
}

const Tile tile = {int(simdgroup_index_in_threadgroup), int(thread_index_in_simdgroup)};
typename Tile::Sum sum;
Tile::clear(sum);
for (int next = 0; next < DEPTH + BK; next += BK) {
  Pack<T> row_part[RowShare::PASSES];
  Pack<T> weight_part[WeightShare::PASSES];
#pragma unroll
  for (int i = 0; i < RowShare::PASSES; ++i) {
    const int row = first_row + RowShare::row(self, i);
    const int kk = next + RowShare::column(self, i);
    const int tap = kk / PADDED;
    row_part[i] = Pack<T>{};
    const bool exists = RowShare::has(self, i) && row < rows && kk < DEPTH;
    if (exists && G::inside(G::reader(location[i], tap)))
      row_part[i] = load_row<O>(d_activation + (start[i] - G::shift(tap)) * O, kk % PADDED);
  }
#pragma unroll
  for (int i = 0; i < WeightShare::PASSES; ++i) {
    const int kk = next + WeightShare::row(self, i);
    const int channel = first_channel + WeightShare::column(self, i);
    weight_part[i] = Pack<T>{};
    if (WeightShare::has(self, i) && kk < DEPTH && kk % PADDED < O && channel < M)
      weight_part[i] =
          load_row<M>(weight + (kk % PADDED * G::TAPS + kk / PADDED) * M, channel);
  }

  if (next > 0) tile.multiply(sum, row_slice, weight_slice);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  RowShare::put(row_slice, Tile::LEFT_STRIDE, self, row_part);
  WeightShare::put(weight_slice, Tile::RIGHT_STRIDE, self, weight_part);
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

#pragma unroll
for (int strip = 0; strip < Tile::STRIPS; ++strip) {
  tile.spill(sum, strip, strips);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int e = tile.first_element(); Tile::is_element(e); e = tile.next_element(e)) {
    const int row = first_row + tile.row(strip, e);
    const int channel = first_channel + tile.column(e);
    if (row < rows && channel < M) {
      const float d = tile.total(strips, e);
      if (row < hidden_rows)
        d_hidden[size_t(row) * M + channel] = d;
      else
        d_projected[(row - hidden_rows) * M + channel] = d;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

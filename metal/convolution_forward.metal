// Cross-layer convolution (Eq. 5, 22, 24): the activations of all locations, one matrix product.
//
//   activation[row, o] = bias[o] + sum over kk of tap[row, kk] · weight[o, kk]
//
// with a row for each example and location, and kk = tap · M + m (M rounded up to a multiple of
// four). The factor of the hidden state is never formed: each slice of it is gathered from `hidden`
// and `projected` on the way to threadgroup memory. The tRNN's tanh (Eq. 7) joins the bias in the
// epilogue.
//
// Inputs      hidden [B, *P, M], projected [B, M], weight [O, *K, M], bias [O], all T
// Output      activation [B, *P, O], T
// Template    T: float, half or bfloat16_t; M, O; P0 … K2: the geometry; BM, BN, BK: the tile and
//             its slices; WM, WN, WK: its simdgroups; TANH
// Grid        ceil(B · LOCATIONS / BM) x ceil(O / BN) threadgroups: those at work together share
//             columns, so that a large weight is read once, the smaller hidden state more often
// Threadgroup 32 · WM · WN · WK threads
#include "tiles.h"

typedef Geometry<P0, P1, P2, K0, K1, K2> G;
typedef TileProduct<T, BM, BN, BK, WM, WN, WK, false, true> Tile;
constexpr int PADDED = Padded<M>::SIZE;
constexpr int DEPTH = G::TAPS * PADDED;
typedef Share<BM, BK, Tile::THREADS> RowShare;
typedef Share<BN, BK, Tile::THREADS> WeightShare;

threadgroup PACKED T row_slice[Tile::LEFT_SIZE];
threadgroup PACKED T weight_slice[Tile::RIGHT_SIZE];
threadgroup float strips[Tile::STRIPS_SIZE];

const int self = thread_index_in_threadgroup;
const int rows = hidden_shape[0] * G::LOCATIONS;
const int first_row = threadgroup_position_in_grid.x * BM;
const int first_output = threadgroup_position_in_grid.y * BN;

// Of each row that this thread loads: its example and location, and what its tap reads there.
int example[RowShare::PASSES];
Location location[RowShare::PASSES];
int from[RowShare::PASSES];
#pragma unroll
for (int i = 0; i < RowShare::PASSES; ++i) {
  const int row = first_row + RowShare::row(self, i);
  example[i] = RowShare::has(self, i) && row < rows ? row / G::LOCATIONS : -1;
  location[i] = G::location(row % G::LOCATIONS);
}

const Tile tile = {int(simdgroup_index_in_threadgroup), int(thread_index_in_simdgroup)};
typename Tile::Sum sum;
Tile::clear(sum);
Walk<G, PADDED> walk = Walk<G, PADDED>::to(RowShare::column(self, 0));  // the same in every pass
bool moved = true;
for (int next = 0; next < DEPTH + BK; next += BK) {
  Pack<T> row_part[RowShare::PASSES];
  Pack<T> weight_part[WeightShare::PASSES];
  if (moved) {
#pragma unroll
    for (int i = 0; i < RowShare::PASSES; ++i)
      from[i] = example[i] < 0 || !walk.inside()
                    ? NOTHING
                    : hidden_row<G>(G::source(location[i], walk.step), example[i] * G::LOCATIONS);
  }
#pragma unroll
  for (int i = 0; i < RowShare::PASSES; ++i) {
    row_part[i] = Pack<T>{};
    if (from[i] >= 0)
      row_part[i] = load_row<M>(hidden + ptrdiff_t(from[i]) * M, walk.at);
    else if (from[i] == PROJECTED)
      row_part[i] = load_row<M>(projected + example[i] * M, walk.at);
  }
#pragma unroll
  for (int i = 0; i < WeightShare::PASSES; ++i) {
    const int output = first_output + WeightShare::row(self, i);
    weight_part[i] = Pack<T>{};
    if (WeightShare::has(self, i) && output < O && walk.inside())
      weight_part[i] = load_row<M>(weight + (output * G::TAPS + walk.tap) * M, walk.at);
  }
  moved = walk.template advance<BK>();

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
    const int output = first_output + tile.column(e);
    if (row < rows && output < O) {
      const float a = tile.total(strips, e) + float(bias[output]);
      activation[size_t(row) * O + output] = T(TANH ? metal::precise::tanh(a) : a);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

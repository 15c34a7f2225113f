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

threadgroup PACKED T row_slice[Tile::LEFT_SIZE];
threadgroup PACKED T weight_slice[Tile::RIGHT_SIZE];
threadgroup float strips[Tile::STRIPS_SIZE];

const int self = thread_index_in_threadgroup;
const int batch = d_activation_shape[0];
const int hidden_rows = batch * G::LOCATIONS;
const int rows = hidden_rows + batch;
const int first_row = threadgroup_position_in_grid.x * BM;
const int first_channel = threadgroup_position_in_grid.y * BN;

// Of each row that this thread loads: its example, its location, which may be a corner, and the row
// of d_activation that reads it through the tap.
int example[RowShare::PASSES];
Location location[RowShare::PASSES];
int from[RowShare::PASSES];
#pragma unroll
for (int i = 0; i < RowShare::PASSES; ++i) {
  const int row = first_row + RowShare::row(self, i);
  const bool of_hidden = row < hidden_rows;
  const bool exists = RowShare::has(self, i) && row < rows;
  example[i] = !exists ? -1 : of_hidden ? row / G::LOCATIONS : row - hidden_rows;
  location[i] = of_hidden ? G::location(row % G::LOCATIONS) : G::corner();
}
// And of each row of the weight.
typedef Walk<G, PADDED> Place;
Place weight_place[WeightShare::PASSES];
#pragma unroll
for (int i = 0; i < WeightShare::PASSES; ++i)
  weight_place[i] = Place::to(WeightShare::row(self, i));

const Tile tile = {int(simdgroup_index_in_threadgroup), int(thread_index_in_simdgroup)};
typename Tile::Sum sum;
Tile::clear(sum);
Place place = Place::to(RowShare::column(self, 0));  // the same in every pass
bool moved = true;
for (int next = 0; next < DEPTH + BK; next += BK) {
  Pack<T> row_part[RowShare::PASSES];
  Pack<T> weight_part[WeightShare::PASSES];
  if (moved) {
#pragma unroll
    for (int i = 0; i < RowShare::PASSES; ++i) {
      const Location reader = G::reader(location[i], place.step);
      const bool exists = place.inside() && G::inside(reader);
      from[i] = exists ? example[i] * G::LOCATIONS + G::index(reader) : NOTHING;
    }
  }
#pragma unroll
  for (int i = 0; i < RowShare::PASSES; ++i) {
    row_part[i] = Pack<T>{};
    if (from[i] >= 0)
      row_part[i] = load_row<O>(d_activation + ptrdiff_t(from[i]) * O, place.at);
  }
#pragma unroll
  for (int i = 0; i < WeightShare::PASSES; ++i) {
    const Place of = weight_place[i];
    const int channel = first_channel + WeightShare::column(self, i);
    weight_part[i] = Pack<T>{};
    if (WeightShare::has(self, i) && of.inside() && of.at < O && channel < M)
      weight_part[i] = load_row<M>(weight + (of.at * G::TAPS + of.tap) * M, channel);
    weight_place[i].template advance<BK>();
  }
  moved = place.template advance<BK>();

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

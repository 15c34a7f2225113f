// Gradients of the cross-layer convolution (Eq. 22, 24) for weight and bias, over up to eight time
// steps, one matrix product.
//
//   d_weight[o, kk] = sum over steps and rows of d_activation[row, o] · tap[row, kk]
//
// with kk = tap · M + m as in the forward pass, and a last column kk = <K> · M that is one in
// every row, for the bias; M is rounded up to a multiple of four. Each element is summed by one
// threadgroup over all rows of all steps, in a fixed order.
//
// Inputs      hidden_0 … hidden_7 [B, *P, M], projected_0 … projected_7 [B, M],
//             d_activation_0 … d_activation_7 [B, *P, O], all T: of the steps, then anything;
//             weight_before [O, *K, M], bias_before [O], float: sums of the launches before, or
//             one axis of anything in place of both
// Outputs     d_weight [O, *K, M], d_bias [O], both float
// Template    T: float, half or bfloat16_t; M, O; P0 … K2: the geometry; STEPS: 1 … 8; BM, BN, BK:
//             the tile and its slices; WM, WN, WK: its simdgroups
// Grid        ceil(O / BM) x ceil((<K> · M + 1) / BN) threadgroups
// Threadgroup 32 · WM · WN · WK threads
#include "pick.h"
#include "tiles.h"

typedef Geometry<P0, P1, P2, K0, K1, K2> G;
typedef TileProduct<T, BM, BN, BK, WM, WN, WK, true, false> Tile;
constexpr int PADDED = Padded<M>::SIZE;
constexpr int COLUMNS = G::TAPS * PADDED;
typedef Share<BK, BM, Tile::THREADS> OutputShare;
typedef Share<BK, BN, Tile::THREADS> TapShare;

threadgroup PACKED T output_slice[Tile::LEFT_SIZE];
threadgroup PACKED T tap_slice[Tile::RIGHT_SIZE];
threadgroup float strips[Tile::STRIPS_SIZE];

const bool accumulate = weight_before_ndim > 1;
const int self = thread_index_in_threadgroup;
const int rows = hidden_0_shape[0] * G::LOCATIONS;
const int first_output = threadgroup_position_in_grid.x * BM;
const int first_column = threadgroup_position_in_grid.y * BN;

const Tile tile = {int(simdgroup_index_in_threadgroup), int(thread_index_in_simdgroup)};
typename Tile::Sum sum;
Tile::clear(sum);
// What this thread loads of what taps read: the taps and their channels, which stay, and the rows'
// locations, which go on with the slices.
constexpr int TAPS_OF_THREAD = TapShare::COLUMNS_OF_THREAD;
Walk<G, PADDED> tap[TAPS_OF_THREAD];
int offset[TAPS_OF_THREAD];  // from a row's first channel to the one that is read
Location location[TapShare::PASSES];
#pragma unroll
for (int i = 0; i < TAPS_OF_THREAD; ++i) {
  tap[i] = Walk<G, PADDED>::to(first_column + TapShare::column(self, i));
  offset[i] = G::index(tap[i].step) * M;
}
// A slice lies in one step; each step's last is filled up with zeros.
const int slices = STEPS * ((rows + BK - 1) / BK);
int step = 0;
int next = 0;
int end = rows;  // of what is loaded: none once all steps are
auto hidden = hidden_0;
auto projected = projected_0;
auto d_activation = d_activation_0;
for (int slice = 0; slice <= slices; ++slice) {
  if (next == 0) {
    end = step < STEPS ? rows : 0;
    hidden = pick(
        step, hidden_0, hidden_1, hidden_2, hidden_3, hidden_4, hidden_5, hidden_6, hidden_7);
    projected = pick(
        step, projected_0, projected_1, projected_2, projected_3, projected_4, projected_5,
        projected_6, projected_7);
    d_activation = pick(
        step, d_activation_0, d_activation_1, d_activation_2, d_activation_3, d_activation_4,
        d_activation_5, d_activation_6, d_activation_7);
#pragma unroll
    for (int i = 0; i < TapShare::PASSES; ++i)
      location[i] = G::location(TapShare::row(self, i) % G::LOCATIONS);
  }
  Pack<T> output_part[OutputShare::PASSES];
  Pack<T> tap_part[TapShare::PASSES];
#pragma unroll
  for (int i = 0; i < OutputShare::PASSES; ++i) {
    const int row = next + OutputShare::row(self, i);
    const int output = first_output + OutputShare::column(self, i);
    output_part[i] = Pack<T>{};
    if (OutputShare::has(self, i) && row < end && output < O)
      output_part[i] = load_row<O>(d_activation + size_t(row) * O, output);
  }
#pragma unroll
  for (int i = 0; i < TapShare::PASSES; ++i) {
    const int row = next + TapShare::row(self, i);
    const Walk<G, PADDED> of = tap[i % TAPS_OF_THREAD];
    const Location read = G::source(location[i], of.step);
    tap_part[i] = Pack<T>{};
    if (TapShare::has(self, i) && row < end) {
      if (!of.inside()) {
        tap_part[i].item[0] = T(1);  // of the last column; what lies beyond is cut
      } else if (G::inside(read)) {
        tap_part[i] = load_row<M>(hidden + (ptrdiff_t(row) * M + offset[i % TAPS_OF_THREAD]), of.at);
      } else if (G::is_corner(read)) {
        tap_part[i] = load_row<M>(projected + row / G::LOCATIONS * M, of.at);
      }
    }
    G::template advance<BK>(location[i]);
  }

  if (slice > 0) tile.multiply(sum, output_slice, tap_slice);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  OutputShare::put(output_slice, Tile::LEFT_STRIDE, self, output_part);
  TapShare::put(tap_slice, Tile::RIGHT_STRIDE, self, tap_part);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  next += BK;
  if (next >= rows) {
    next = 0;
    ++step;
  }
}

#pragma unroll
for (int strip = 0; strip < Tile::STRIPS; ++strip) {
  tile.spill(sum, strip, strips);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int e = tile.first_element(); Tile::is_element(e); e = tile.next_element(e)) {
    const int output = first_output + tile.row(strip, e);
    const int column = first_column + tile.column(e);
    const int tap = column / PADDED;
    const int m = column % PADDED;
    const int place = (output * G::TAPS + tap) * M + m;
    const float d = tile.total(strips, e);
    if (output < O && tap < G::TAPS && m < M)
      d_weight[place] = accumulate ? weight_before[place] + d : d;
    if (output < O && column == COLUMNS)
      d_bias[output] = accumulate ? bias_before[output] + d : d;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Matrix products, for the convolutions.
//
// A threadgroup computes a tile of BM x BN of left · right by slices of BK of the sum. Its threads
// load a slice of both factors into registers, while the slice before is multiplied, and store it
// to threadgroup memory; WM x WN x WK simdgroups share the tile's rows and columns and the slice's
// depth, each with its part of the tile in 8x8 matrices in registers. At the end the parts go
// through threadgroup memory, eight rows at a time, where those of one place are added in order.
#include <metal_simdgroup_matrix>

#include "packs.h"

// How THREADS threads share a slice of ROWS x COLUMNS elements, in passes of four neighbours each.
template <int ROWS, int COLUMNS, int THREADS>
struct Share {
  static constexpr constant int WIDTH = COLUMNS / 4;
  static constexpr constant int PASSES = (ROWS * WIDTH + THREADS - 1) / THREADS;
  // Columns at which a thread loads: one, or one of each pass.
  static constexpr constant int COLUMNS_OF_THREAD = THREADS % WIDTH == 0 ? 1 : PASSES;

  static METAL_FUNC bool has(int thread_index, int pass) {
    return ROWS * WIDTH % THREADS == 0 || thread_index + pass * THREADS < ROWS * WIDTH;
  }

  static METAL_FUNC int row(int thread_index, int pass) {
    return (thread_index + pass * THREADS) / WIDTH;
  }

  static METAL_FUNC int column(int thread_index, int pass) {
    return (thread_index + pass * THREADS) % WIDTH * 4;
  }

  // Stores what this thread loaded in each pass to a slice with rows `stride` elements apart.
  template <typename T>
  static METAL_FUNC void put(
      threadgroup T* slice, int stride, int thread_index, const thread Pack<T> (&part)[PASSES]) {
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
      const int place = row(thread_index, i) * stride + column(thread_index, i);
      if (has(thread_index, i)) *(threadgroup Pack<T>*)(slice + place) = part[i];
    }
  }
};

// A place in a sum over taps and LENGTH elements of each, and the tap's own place among the taps.
// It is carried along, so that no slice divides.
template <typename G, int LENGTH>
struct Walk {
  int tap;
  Location step;
  int at;

  static METAL_FUNC Walk to(int place) {
    const int tap = place / LENGTH;
    return Walk{tap, G::step(tap), place % LENGTH};
  }

  METAL_FUNC bool inside() const thread {
    return tap < G::TAPS;
  }

  // Goes on by so many elements; whether to another tap.
  template <int BY>
  METAL_FUNC bool advance() thread {
    at += BY;
    if (at < LENGTH) return false;
    do {
      at -= LENGTH;
      ++tap;
      step = G::next_step(step);
    } while (BY > LENGTH && at >= LENGTH);
    return true;
  }
};

// The row of an example's hidden state at a place, or what is read there in its stead.
constexpr constant int NOTHING = -1;
constexpr constant int PROJECTED = -2;

template <typename G>
METAL_FUNC int hidden_row(Location place, int first_row) {
  return G::inside(place) ? first_row + G::index(place) : G::is_corner(place) ? PROJECTED : NOTHING;
}

// A tile of a product, as one thread sees it. A slice of `left` is [BM, BK] or, transposed,
// [BK, BM]; one of `right` is [BK, BN] or, transposed, [BN, BK]. Their rows lie 16 bytes further
// apart than they are long, so that the rows of an 8x8 matrix fall on different banks.
template <
    typename T, int BM, int BN, int BK, int WM, int WN, int WK,
    bool LEFT_TRANSPOSED, bool RIGHT_TRANSPOSED>
struct TileProduct {
  static constexpr constant int THREADS = 32 * WM * WN * WK;
  static constexpr constant int ROWS = BM / WM;
  static constexpr constant int COLUMNS = BN / WN;
  static constexpr constant int DEPTH = BK / WK;
  static constexpr constant int GAP = 16 / int(sizeof(T));
  static constexpr constant int LEFT_STRIDE = (LEFT_TRANSPOSED ? BM : BK) + GAP;
  static constexpr constant int LEFT_SIZE = (LEFT_TRANSPOSED ? BK : BM) * LEFT_STRIDE;
  static constexpr constant int RIGHT_STRIDE = (RIGHT_TRANSPOSED ? BK : BN) + GAP;
  static constexpr constant int RIGHT_SIZE = (RIGHT_TRANSPOSED ? BN : BK) * RIGHT_STRIDE;
  static constexpr constant int STRIPS = ROWS / 8;
  static constexpr constant int STRIP_STRIDE = COLUMNS + 4;
  static constexpr constant int STRIP_SIZE = 8 * STRIP_STRIDE;
  static constexpr constant int STRIPS_SIZE = WM * WN * WK * STRIP_SIZE;

  typedef metal::simdgroup_matrix<float, 8, 8> Sum[ROWS / 8][COLUMNS / 8];

  int simdgroup;
  int lane;

  static METAL_FUNC void clear(thread Sum& sum) {
#pragma unroll
    for (int i = 0; i < ROWS / 8; ++i)
#pragma unroll
      for (int j = 0; j < COLUMNS / 8; ++j)
        sum[i][j] = metal::make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }

  // Place of this simdgroup's part in the tile and in a slice's depth.
  METAL_FUNC int first_row() const thread {
    return simdgroup / WN % WM * ROWS;
  }

  METAL_FUNC int first_column() const thread {
    return simdgroup % WN * COLUMNS;
  }

  METAL_FUNC int first_depth() const thread {
    return simdgroup / (WN * WM) * DEPTH;
  }

  METAL_FUNC void multiply(
      thread Sum& sum, const threadgroup T* left, const threadgroup T* right) const thread {
    left += LEFT_TRANSPOSED ? first_depth() * LEFT_STRIDE + first_row()
                            : first_row() * LEFT_STRIDE + first_depth();
    right += RIGHT_TRANSPOSED ? first_column() * RIGHT_STRIDE + first_depth()
                              : first_depth() * RIGHT_STRIDE + first_column();
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
      metal::simdgroup_matrix<T, 8, 8> a[ROWS / 8], b[COLUMNS / 8];
#pragma unroll
      for (int i = 0; i < ROWS / 8; ++i)
        metal::simdgroup_load(
            a[i], left + (LEFT_TRANSPOSED ? k * LEFT_STRIDE + 8 * i : 8 * i * LEFT_STRIDE + k),
            LEFT_STRIDE, ulong2(0, 0), LEFT_TRANSPOSED);
#pragma unroll
      for (int j = 0; j < COLUMNS / 8; ++j)
        metal::simdgroup_load(
            b[j], right + (RIGHT_TRANSPOSED ? 8 * j * RIGHT_STRIDE + k : k * RIGHT_STRIDE + 8 * j),
            RIGHT_STRIDE, ulong2(0, 0), RIGHT_TRANSPOSED);
#pragma unroll
      for (int i = 0; i < ROWS / 8; ++i)
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j)
          metal::simdgroup_multiply_accumulate(sum[i][j], a[i], b[j], sum[i][j]);
    }
  }

  // Rows 8 strip … 8 strip + 7 of every simdgroup's part, to threadgroup memory.
  METAL_FUNC void spill(thread Sum& sum, int strip, threadgroup float* strips) const thread {
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j)
      metal::simdgroup_store(sum[strip][j], strips + simdgroup * STRIP_SIZE + 8 * j, STRIP_STRIDE);
  }

  // The simdgroups that share a place divide a strip's elements: which this thread has, where each
  // lies in the tile, and its sum over those simdgroups.
  METAL_FUNC int first_element() const thread {
    return simdgroup / (WN * WM) * 32 + lane;
  }

  METAL_FUNC int next_element(int element) const thread {
    return element + 32 * WK;
  }

  static METAL_FUNC bool is_element(int element) {
    return element < 8 * COLUMNS;
  }

  METAL_FUNC int row(int strip, int element) const thread {
    return first_row() + 8 * strip + element / COLUMNS;
  }

  METAL_FUNC int column(int element) const thread {
    return first_column() + element % COLUMNS;
  }

  METAL_FUNC float total(const threadgroup float* strips, int element) const thread {
    const int place =
        simdgroup % (WN * WM) * STRIP_SIZE + element / COLUMNS * STRIP_STRIDE + element % COLUMNS;
    float value = strips[place];
#pragma unroll
    for (int k = 1; k < WK; ++k)
      value += strips[place + k * WN * WM * STRIP_SIZE];
    return value;
  }
};

// Rows of channels, read and written four elements at a time. Where their length is no multiple of
// four, the products see them longer by the zeros that follow.
#include "geometry.h"

template <typename T>
struct alignas(4 * sizeof(T)) Pack {
  T item[4];
};

template <int LENGTH>
struct Padded {
  static constexpr constant int SIZE = (LENGTH + 3) / 4 * 4;
};

// For arrays in threadgroup memory to which packs are stored.
#ifndef PACKED
#define PACKED __attribute__((aligned(16)))
#endif

// As much, wherever it begins; hardware may still load it at once.
template <typename T>
struct UnalignedPack {
  T item[4];
};

// Elements first … first + 3 of a row of LENGTH, zero beyond it; `first` is a multiple of four.
template <int LENGTH, typename T>
METAL_FUNC Pack<T> load_row(const device T* row, int first) {
  if (LENGTH % 4 == 0) return *(const device Pack<T>*)(row + first);
  Pack<T> pack = {};
  if (first + 4 <= LENGTH) {
    const UnalignedPack<T> four = *(const device UnalignedPack<T>*)(row + first);
#pragma unroll
    for (int j = 0; j < 4; ++j) pack.item[j] = four.item[j];
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (first + j < LENGTH) pack.item[j] = row[first + j];
  }
  return pack;
}

template <typename A, typename B>
struct Different {
  typedef void type;
};

template <typename A>
struct Different<A, A> {};

// The same for a buffer of fewer than eight elements, which MLX passes in constant memory. Where
// the two address spaces are one, as in CUDA, this overload drops out.
template <
    int LENGTH, typename T,
    typename = typename Different<const device T*, const constant T*>::type>
METAL_FUNC Pack<T> load_row(const constant T* row, int first) {
  Pack<T> pack = {};
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (first + j < LENGTH) pack.item[j] = row[first + j];
  return pack;
}

// Stores elements first … first + 3 of a row of LENGTH, but for those beyond it.
template <int LENGTH, typename T>
METAL_FUNC void store_row(device T* row, int first, Pack<T> pack) {
  if (LENGTH % 4 == 0) {
    *(device Pack<T>*)(row + first) = pack;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (first + j < LENGTH) row[first + j] = pack.item[j];
  }
}

// Channels m … m + 3 of what a tap reads for a row, an example's location (Eq. 22): hidden inside
// the tensor, the projected input at the corner, zero elsewhere.
template <typename T, typename G, int M, typename Hidden, typename Projected>
METAL_FUNC Pack<T> read_tap(
    Hidden hidden, Projected projected, int row, Location location, int tap, int m) {
  const Location from = G::source(location, tap);
  if (G::inside(from))
    return load_row<M>(hidden + (ptrdiff_t(row) + G::shift(tap)) * M, m);
  if (G::is_corner(from)) return load_row<M>(projected + row / G::LOCATIONS * M, m);
  return Pack<T>{};
}

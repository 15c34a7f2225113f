// Shared pieces of the kernels: where the taps of a location lie.
//
// A hidden tensor has up to three axes; kernels see three, a missing one in front with P = K = 1.
// Locations are counted from 0 here, row-major, so that hidden[b, p, m] lies at
// (b * LOCATIONS + p) * M + m. Tap k of an axis reads the location k - K / 2 further on; the
// projected input lies at -1 on every axis that exists.
//
// The code keeps to C++14, which every Metal version takes, and to plain structs, which CUDA takes.

struct Location {
  int x, y, z;
};

template <int P0, int P1, int P2, int K0, int K1, int K2>
struct Geometry {
  static constexpr constant int LOCATIONS = P0 * P1 * P2;
  static constexpr constant int TAPS = K0 * K1 * K2;

  static Location location(int index) {
    return Location{index / (P1 * P2), index / P2 % P1, index % P2};
  }

  static int index(Location p) {
    return (p.x * P1 + p.y) * P2 + p.z;
  }

  // Location that tap `tap` reads from `p`; it may lie outside the tensor.
  static Location source(Location p, int tap) {
    return Location{
        p.x + tap / (K1 * K2) - K0 / 2, p.y + tap / K2 % K1 - K1 / 2, p.z + tap % K2 - K2 / 2};
  }

  // index(source(p, tap)) - index(p), and index(p) - index(reader(p, tap)), whatever p.
  static int shift(int tap) {
    return index(source(Location{0, 0, 0}, tap));
  }

  // Location that reads `p` through tap `tap`; it may lie outside the tensor.
  static Location reader(Location p, int tap) {
    return Location{
        p.x - tap / (K1 * K2) + K0 / 2, p.y - tap / K2 % K1 + K1 / 2, p.z - tap % K2 + K2 / 2};
  }

  static bool inside(Location p) {
    return p.x >= 0 && p.x < P0 && p.y >= 0 && p.y < P1 && p.z >= 0 && p.z < P2;
  }

  // The projected input's place: -1 on every axis, 0 on one that does not exist.
  static Location corner() {
    return Location{K0 == 1 ? 0 : -1, K1 == 1 ? 0 : -1, K2 == 1 ? 0 : -1};
  }

  static bool is_corner(Location p) {
    const Location c = corner();
    return p.x == c.x && p.y == c.y && p.z == c.z;
  }

  // The nearest location of the tensor (repeated boundary).
  static Location clamped(Location p) {
    return Location{
        metal::clamp(p.x, 0, P0 - 1), metal::clamp(p.y, 0, P1 - 1), metal::clamp(p.z, 0, P2 - 1)};
  }
};

// ---- Memory cell ------------------------------------------------------------------------------
// One simdgroup works on a row (an example's location): its lanes stride over the M channels, and
// over the taps where there is one number for each.

// Inside the root of both normalisations.
constexpr constant float EPSILON = 1e-5f;

// Template argument NORM.
constexpr constant int CHANNEL_NORM = 1;
constexpr constant int LAYER_NORM = 2;

// Sigmoid without overflow.
inline float logistic(float x) {
  const float e = metal::precise::exp(-metal::fabs(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

// Sum over the simdgroup, in every lane; with WIDE over the threadgroup, whose every thread calls.
// `partial` holds a number for each simdgroup and serves one call, so that one barrier is enough.
template <bool WIDE, int SIMDGROUPS>
float total(float x, threadgroup float* partial, int simdgroup, int lane) {
  x = metal::simd_sum(x);
  if (WIDE) {
    if (lane == 0) partial[simdgroup] = x;
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    x = metal::simd_sum(lane < SIMDGROUPS ? partial[lane] : 0.0f);
  }
  return x;
}

// A weighted sum of rows, one term for each tap; lane l keeps the terms l, l + 32, ...
template <typename G>
struct Taps {
  static constexpr constant int SLOTS = (G::TAPS + 31) / 32;
  float weight[SLOTS];
  int row[SLOTS];  // negative: no such term
};

// Adds channels lane, lane + 32, ... of the weighted sum of the rows of `values` to `sum`.
template <int M, typename G, typename Values>
void add_rows(Taps<G> taps, Values values, int lane, thread float* sum) {
  for (int tap = 0; tap < G::TAPS; ++tap) {
    const int row = metal::simd_shuffle(taps.row[tap / 32], ushort(tap % 32));
    const float weight = metal::simd_shuffle(taps.weight[tap / 32], ushort(tap % 32));
    if (row < 0) continue;
#pragma unroll
    for (int c = 0; c < (M + 31) / 32; ++c) {
      const int m = lane + 32 * c;
      if (m < M) sum[c] += weight * values[size_t(row) * M + m];
    }
  }
}

// What `row` reads of the memory (Eq. 16, 25): the nearest rows, weighted by the softmax of its
// logits (Eq. 15).
template <typename G, typename Logits>
Taps<G> memory_taps(int row, Logits logits, int lane) {
  const int p = row % G::LOCATIONS;
  Taps<G> taps;
  float largest = -INFINITY;
  for (int s = 0; s < Taps<G>::SLOTS; ++s) {
    const int tap = lane + 32 * s;
    const bool exists = tap < G::TAPS;
    taps.weight[s] = exists ? float(logits[tap]) : -INFINITY;
    taps.row[s] = exists ? row - p + G::index(G::clamped(G::source(G::location(p), tap))) : -1;
    largest = metal::max(largest, taps.weight[s]);
  }
  largest = metal::simd_max(largest);
  float sum = 0.0f;
  for (int s = 0; s < Taps<G>::SLOTS; ++s) {
    taps.weight[s] = metal::precise::exp(taps.weight[s] - largest);
    sum += taps.weight[s];
  }
  sum = metal::simd_sum(sum);
  for (int s = 0; s < Taps<G>::SLOTS; ++s) taps.weight[s] /= sum;
  return taps;
}

// First and last of an axis' taps through which `reader` reads p: at the tensor's border also
// those that would lie beyond it.
inline int first_tap(int p, int reader, int K) {
  return p == 0 ? 0 : p - reader + K / 2;
}

inline int last_tap(int p, int reader, int P, int K) {
  return p == P - 1 ? K - 1 : p - reader + K / 2;
}

// The adjoint of memory_taps: the rows that read `row`, each weighted by the sum of its kernel
// over the taps through which it does. The reader through each tap of the unbounded tensor is one
// term; repeating the boundary adds taps, but no readers.
template <int P0, int P1, int P2, int K0, int K1, int K2, typename Kernels>
Taps<Geometry<P0, P1, P2, K0, K1, K2>> reader_taps(int row, Kernels kernels, int lane) {
  typedef Geometry<P0, P1, P2, K0, K1, K2> G;
  const int index = row % G::LOCATIONS;
  const Location p = G::location(index);
  Taps<G> taps;
  for (int s = 0; s < Taps<G>::SLOTS; ++s) {
    const int term = lane + 32 * s;
    const Location r = G::reader(p, term);
    taps.weight[s] = 0.0f;
    taps.row[s] = -1;
    if (term >= G::TAPS || !G::inside(r)) continue;
    taps.row[s] = row - index + G::index(r);
    for (int x = first_tap(p.x, r.x, K0); x <= last_tap(p.x, r.x, P0, K0); ++x)
      for (int y = first_tap(p.y, r.y, K1); y <= last_tap(p.y, r.y, P1, K1); ++y)
        for (int z = first_tap(p.z, r.z, K2); z <= last_tap(p.z, r.z, P2, K2); ++z)
          taps.weight[s] += kernels[size_t(taps.row[s]) * G::TAPS + (x * K1 + y) * K2 + z];
  }
  return taps;
}

// ---- Matrix products, for the convolutions -----------------------------------------------------
// A threadgroup computes a tile of BM x BN of left · right by slices of BK of the sum. Its threads
// load a slice of both factors into registers, while the slice before is multiplied, and store it
// to threadgroup memory; WM x WN x WK simdgroups share the tile's rows and columns and the slice's
// depth, each with its part of the tile in 8x8 matrices in registers. At the end the parts go
// through threadgroup memory, eight rows at a time, where those of one place are added in order.

// Rows of channels are read four elements at a time. Where their length is no multiple of four, the
// products see them longer by the zeros that follow.
template <typename T>
struct alignas(4 * sizeof(T)) Pack {
  T item[4];
};

template <int LENGTH>
struct Padded {
  static constexpr constant int SIZE = (LENGTH + 3) / 4 * 4;
};

// As much, wherever it begins; hardware may still load it at once.
template <typename T>
struct UnalignedPack {
  T item[4];
};

// Elements first … first + 3 of a row of LENGTH, zero beyond it; `first` is a multiple of four.
template <int LENGTH, typename T>
Pack<T> load_row(const device T* row, int first) {
  if (LENGTH % 4 == 0) return *(const device Pack<T>*)(row + first);
  Pack<T> pack = {};
  if (first + 4 <= LENGTH) {
    const UnalignedPack<T> four = *(const device UnalignedPack<T>*)(row + first);
    for (int j = 0; j < 4; ++j) pack.item[j] = four.item[j];
  } else {
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
Pack<T> load_row(const constant T* row, int first) {
  Pack<T> pack = {};
  for (int j = 0; j < 4; ++j)
    if (first + j < LENGTH) pack.item[j] = row[first + j];
  return pack;
}

// Stores elements first … first + 3 of a row of LENGTH, but for those beyond it.
template <int LENGTH, typename T>
void store_row(device T* row, int first, Pack<T> pack) {
  if (LENGTH % 4 == 0) {
    *(device Pack<T>*)(row + first) = pack;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (first + j < LENGTH) row[first + j] = pack.item[j];
  }
}

// How THREADS threads share a slice of ROWS x COLUMNS elements, in passes of four neighbours each.
template <int ROWS, int COLUMNS, int THREADS>
struct Share {
  static constexpr constant int WIDTH = COLUMNS / 4;
  static constexpr constant int PASSES = (ROWS * WIDTH + THREADS - 1) / THREADS;

  static bool has(int thread_index, int pass) {
    return thread_index + pass * THREADS < ROWS * WIDTH;
  }

  static int row(int thread_index, int pass) {
    return (thread_index + pass * THREADS) / WIDTH;
  }

  static int column(int thread_index, int pass) {
    return (thread_index + pass * THREADS) % WIDTH * 4;
  }

  // Stores what this thread loaded in each pass to a slice with rows `stride` elements apart.
  template <typename T>
  static void put(
      threadgroup T* slice, int stride, int thread_index, const thread Pack<T> (&part)[PASSES]) {
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
      const int place = row(thread_index, i) * stride + column(thread_index, i);
      if (has(thread_index, i)) *(threadgroup Pack<T>*)(slice + place) = part[i];
    }
  }
};

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

  static void clear(thread Sum& sum) {
#pragma unroll
    for (int i = 0; i < ROWS / 8; ++i)
#pragma unroll
      for (int j = 0; j < COLUMNS / 8; ++j)
        sum[i][j] = metal::make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }

  // Place of this simdgroup's part in the tile and in a slice's depth.
  int first_row() const thread {
    return simdgroup / WN % WM * ROWS;
  }

  int first_column() const thread {
    return simdgroup % WN * COLUMNS;
  }

  int first_depth() const thread {
    return simdgroup / (WN * WM) * DEPTH;
  }

  void multiply(
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
  void spill(thread Sum& sum, int strip, threadgroup float* strips) const thread {
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j)
      metal::simdgroup_store(sum[strip][j], strips + simdgroup * STRIP_SIZE + 8 * j, STRIP_STRIDE);
  }

  // The simdgroups that share a place divide a strip's elements: which this thread has, where each
  // lies in the tile, and its sum over those simdgroups.
  int first_element() const thread {
    return simdgroup / (WN * WM) * 32 + lane;
  }

  int next_element(int element) const thread {
    return element + 32 * WK;
  }

  static bool is_element(int element) {
    return element < 8 * COLUMNS;
  }

  int row(int strip, int element) const thread {
    return first_row() + 8 * strip + element / COLUMNS;
  }

  int column(int element) const thread {
    return first_column() + element % COLUMNS;
  }

  float total(const threadgroup float* strips, int element) const thread {
    const int place =
        simdgroup % (WN * WM) * STRIP_SIZE + element / COLUMNS * STRIP_STRIDE + element % COLUMNS;
    float value = strips[place];
#pragma unroll
    for (int k = 1; k < WK; ++k)
      value += strips[place + k * WN * WM * STRIP_SIZE];
    return value;
  }
};

// Channels m … m + 3 of what a tap reads for a row, an example's location (Eq. 22): hidden inside
// the tensor, the projected input at the corner, zero elsewhere.
template <typename T, typename G, int M, typename Hidden, typename Projected>
Pack<T> read_tap(Hidden hidden, Projected projected, int row, Location location, int tap, int m) {
  const Location from = G::source(location, tap);
  if (G::inside(from))
    return load_row<M>(hidden + (ptrdiff_t(row) + G::shift(tap)) * M, m);
  if (G::is_corner(from)) return load_row<M>(projected + row / G::LOCATIONS * M, m);
  return Pack<T>{};
}

// One of eight buffers of one type.
template <typename Buffer>
Buffer pick(
    int i, Buffer b0, Buffer b1, Buffer b2, Buffer b3, Buffer b4, Buffer b5, Buffer b6, Buffer b7) {
  switch (i) {
    case 0: return b0;
    case 1: return b1;
    case 2: return b2;
    case 3: return b3;
    case 4: return b4;
    case 5: return b5;
    case 6: return b6;
    default: return b7;
  }
}

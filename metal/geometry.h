// Where the taps of a location lie.
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

  static METAL_FUNC Location location(int index) {
    // An axis that does not exist costs nothing.
    return Location{
        P0 == 1 ? 0 : index / (P1 * P2), P1 == 1 ? 0 : index / P2 % P1, index % P2};
  }

  // Goes on by so many locations, from a tensor's last to the first of the next.
  template <int BY>
  static METAL_FUNC void advance(thread Location& p) {
    constexpr int REST = BY % LOCATIONS;
    const int z = p.z + REST % P2;
    const int y = p.y + REST / P2 % P1 + int(z >= P2);
    const int x = p.x + REST / (P1 * P2) + int(y >= P1);
    p = Location{
        P0 == 1 ? 0 : x >= P0 ? x - P0 : x, P1 == 1 ? 0 : y >= P1 ? y - P1 : y,
        z >= P2 ? z - P2 : z};
  }

  static METAL_FUNC int index(Location p) {
    return (p.x * P1 + p.y) * P2 + p.z;
  }

  // How far on the tap reads, on each axis; and of the tap after one.
  static METAL_FUNC Location step(int tap) {
    return Location{
        K0 == 1 ? 0 : tap / (K1 * K2) - K0 / 2, K1 == 1 ? 0 : tap / K2 % K1 - K1 / 2,
        tap % K2 - K2 / 2};
  }

  static METAL_FUNC Location next_step(Location s) {
    const bool row_ends = s.z == K2 - K2 / 2 - 1;
    const bool plane_ends = row_ends && s.y == K1 - K1 / 2 - 1;
    return Location{
        K0 == 1 ? 0 : s.x + int(plane_ends),
        K1 == 1 ? 0 : plane_ends ? s.y - K1 + 1 : s.y + int(row_ends),
        row_ends ? s.z - K2 + 1 : s.z + 1};
  }

  // Location that tap `tap` reads from `p`, or through which `p` is read; it may lie outside the
  // tensor.
  static METAL_FUNC Location source(Location p, Location step) {
    return Location{p.x + step.x, p.y + step.y, p.z + step.z};
  }

  static METAL_FUNC Location source(Location p, int tap) {
    return source(p, step(tap));
  }

  static METAL_FUNC Location reader(Location p, Location step) {
    return Location{p.x - step.x, p.y - step.y, p.z - step.z};
  }

  static METAL_FUNC Location reader(Location p, int tap) {
    return reader(p, step(tap));
  }

  // index(source(p, tap)) - index(p), and index(p) - index(reader(p, tap)), whatever p.
  static METAL_FUNC int shift(int tap) {
    return index(step(tap));
  }

  static METAL_FUNC bool inside(Location p) {
    return p.x >= 0 && p.x < P0 && p.y >= 0 && p.y < P1 && p.z >= 0 && p.z < P2;
  }

  // The projected input's place: -1 on every axis, 0 on one that does not exist.
  static METAL_FUNC Location corner() {
    return Location{K0 == 1 ? 0 : -1, K1 == 1 ? 0 : -1, K2 == 1 ? 0 : -1};
  }

  static METAL_FUNC bool is_corner(Location p) {
    const Location c = corner();
    return p.x == c.x && p.y == c.y && p.z == c.z;
  }

  // The nearest location of the tensor (repeated boundary).
  static METAL_FUNC Location clamped(Location p) {
    return Location{
        metal::clamp(p.x, 0, P0 - 1), metal::clamp(p.y, 0, P1 - 1), metal::clamp(p.z, 0, P2 - 1)};
  }
};

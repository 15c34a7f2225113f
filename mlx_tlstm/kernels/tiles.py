"""Tiles of the convolution kernels, and which serves which size.

What decides on an Apple GPU, by first principles (nothing here was timed on one):

- A core multiplies 8x8 matrices from registers. A simdgroup's part of 32x32 reads 8 matrices from
  threadgroup memory for 16 products, one of 16x16 reads 4 for 4: large parts, where there is work
  for them. The sums of 32x32 take 32 registers a thread, a quarter of what it may have.
- A threadgroup reads ``depth · (rows + columns)`` numbers for ``depth · rows · columns`` products,
  so a tile of 64x64 asks the caches for half as much as one of 32x32.
- 10 to 40 cores want several threadgroups each, to hide one's barriers and loads behind another's
  products. A small batch has few rows (B·P: 150 for batch 15 and ten locations, 15 for one), so its
  tiles are smaller, and at last the sum is split over simdgroups too, which add up in the end.
- A slice of 16 (32 for small tiles, 64 where it is split) keeps two barriers to 32 products or
  more a simdgroup, and a tile's threadgroup memory to half of the 32 KB or less, so that two fit.
"""

from __future__ import annotations

import dataclasses

from mlx_tlstm.checks import is_integer, require, require_integer

#: Simdgroups that keep a GPU busy: eight for each of 32 cores.
BUSY = 256

#: Threads of a simdgroup.
SIMDGROUP = 32
_MAXIMUM_THREADS = 1024
_MAXIMUM_BYTES = 32768
_PADDING_BYTES = 16
_STRIP_PADDING = 4


@dataclasses.dataclass(frozen=True)
class Tile:
    """How a threadgroup computes its part of a matrix product.

    Args:
        rows: Rows of the tile.
        columns: Columns of the tile.
        depth: Length of a slice of the sum.
        simdgroups: How many share the rows, the columns and a slice's depth; each one's share is a
            multiple of 8 on all three.

    Raises:
        ValueError: A size does not divide, or the tile exceeds a threadgroup's 1024 threads or its
            32 KB of memory in float32.
    """

    rows: int
    columns: int
    depth: int
    simdgroups: tuple[int, int, int] = (2, 2, 1)

    def __post_init__(self) -> None:
        groups = self.simdgroups
        valid = isinstance(groups, tuple) and len(groups) == 3
        valid = valid and all(is_integer(count) and count >= 1 for count in groups)
        require(valid, "Tile", "simdgroups", "three integers of 1 or more", groups)
        for name, count in zip(("rows", "columns", "depth"), groups, strict=True):
            size = getattr(self, name)
            require_integer("Tile", name, size)
            require(size % (8 * count) == 0, "Tile", name, f"a multiple of 8 · {count}", size)
        # So that a thread loads the same place of a slice's depth in each pass.
        power = self.depth & (self.depth - 1) == 0 and self.depth <= 4 * SIMDGROUP
        require(power, "Tile", "depth", f"a power of two up to {4 * SIMDGROUP}", self.depth)
        threads = f"of {_MAXIMUM_THREADS} threads or fewer"
        require(self.threads <= _MAXIMUM_THREADS, "Tile", "simdgroups", threads, groups)
        used = self.threadgroup_bytes
        memory = f"within {_MAXIMUM_BYTES} bytes of threadgroup memory"
        require(used <= _MAXIMUM_BYTES, "Tile", "rows, columns, depth", memory, used)

    @property
    def threads(self) -> int:
        """Threads of a threadgroup."""
        row_groups, column_groups, depth_groups = self.simdgroups
        return SIMDGROUP * row_groups * column_groups * depth_groups

    def fits(self, rows: int, columns: int) -> bool:
        """Whether a product of so many rows and columns covers more than half of it on both."""
        return self.rows < 2 * rows and self.columns < 2 * columns

    @property
    def threadgroup_bytes(self) -> int:
        """Bytes of threadgroup memory in float32, in the layout that takes the most."""
        gap = _PADDING_BYTES // 4
        slices = sum(
            max(size * (self.depth + gap), self.depth * (size + gap))
            for size in (self.rows, self.columns)
        )
        strip = 8 * (self.columns // self.simdgroups[1] + _STRIP_PADDING)
        return 4 * (slices + self.threads // SIMDGROUP * strip)

    def groups(self, rows: int, columns: int) -> tuple[int, int, int]:
        """Threadgroups that cover a product of ``rows`` x ``columns``."""
        return -(-rows // self.rows), -(-columns // self.columns), 1

    @property
    def template(self) -> dict[str, int]:
        """Template arguments of the convolution kernels."""
        names = ("BM", "BN", "BK", "WM", "WN", "WK")
        sizes = (self.rows, self.columns, self.depth, *self.simdgroups)
        return dict(zip(names, sizes, strict=True))


#: Largest first: a simdgroup's part is 32x32, 16x32, 16x16 with the sum whole, halved, quartered.
#: Those of 56 and 104 columns leave less of their work unused where there are 100 or 409.
CANDIDATES = (
    Tile(64, 64, 16, (2, 2, 1)),  # M = 400 and above; M = 100, batch 15, 100 locations
    Tile(64, 56, 16, (4, 1, 1)),
    Tile(64, 104, 16, (4, 1, 1)),
    Tile(32, 64, 16, (2, 2, 1)),
    Tile(32, 56, 16, (2, 1, 2)),  # M = 100's input gradient, batch 15, 100 locations
    Tile(32, 32, 32, (2, 2, 1)),  # M = 100, batch 15, ten locations
    Tile(16, 32, 32, (1, 2, 2)),
    Tile(16, 16, 64, (1, 1, 4)),  # M = 100, batch 15, one location
)


#: Widths that simdgroups share evenly, in whichever direction they divide a tile.
_EVEN_COLUMNS = (64, 32, 16)
#: Tiles of another width are chosen where they cover less than this share of the area that tiles
#: of an even width would cover.
_LESS = 0.9


def choose(rows: int, columns: int) -> Tile:
    """Tile for a product of so many rows and columns.

    The largest that keeps a GPU busy, or the last; none of which half would do. Of those as high
    one that wastes clearly less.
    """

    def covered(tile: Tile) -> int:
        down, across, _ = tile.groups(rows, columns)
        return down * tile.rows * across * tile.columns

    def suits(tile: Tile) -> bool:
        down, across, _ = tile.groups(rows, columns)
        return tile.fits(rows, columns) and down * across * tile.threads // SIMDGROUP >= BUSY

    suiting = [tile for tile in CANDIDATES if suits(tile)]
    even = (tile for tile in suiting if tile.columns in _EVEN_COLUMNS)
    chosen = next(even, CANDIDATES[-1])
    limit = _LESS * covered(chosen)
    others = [t for t in suiting if t.rows == chosen.rows and covered(t) < limit]
    return min(others, key=covered, default=chosen)

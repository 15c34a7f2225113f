"""The tiles that convolutions are cut into, and which is taken."""

from __future__ import annotations

import pytest

from mlx_tlstm.kernels import tiles
from mlx_tlstm.kernels.tiles import CANDIDATES, Tile


@pytest.mark.parametrize(
    ("sizes", "simdgroups", "message"),
    [
        ((24, 16, 16), (2, 2, 1), "'rows' must be a multiple of 8 · 2 but got 24"),
        ((16, 24, 16), (2, 2, 1), "'columns' must be a multiple of 8 · 2 but got 24"),
        ((16, 16, 24), (1, 1, 2), "'depth' must be a multiple of 8 · 2 but got 24"),
        ((16, 16, 24), (1, 1, 1), "'depth' must be a power of two up to 128 but got 24"),
        ((8, 8, 256), (1, 1, 1), "'depth' must be a power of two up to 128 but got 256"),
        ((0, 16, 16), (2, 2, 1), "'rows' must be an integer of 1 or more but got 0"),
        ((16, 16, 16), (2, 0, 1), "'simdgroups' must be three integers of 1 or more"),
        ((16, 16, 16), (2, 2), "'simdgroups' must be three integers of 1 or more"),
        ((64, 64, 16), (8, 8, 1), "'simdgroups' must be of 1024 threads or fewer"),
        ((64, 64, 64), (2, 2, 1), "must be within 32768 bytes of threadgroup memory"),
    ],
)
def test_tile_checks_itself(sizes: tuple, simdgroups: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tile(*sizes, simdgroups)


@pytest.mark.parametrize(
    ("rows", "columns", "tile"),
    [
        (735, 1609, CANDIDATES[0]),  # M = 400, batch 15, 49 locations
        (1500, 409, CANDIDATES[0]),  # M = 100, batch 15, 100 locations
        (1515, 100, CANDIDATES[4]),  # its input gradient: 112 of 128 columns
        (3000, 100, CANDIDATES[1]),
        (6000, 100, CANDIDATES[2]),
        (3000, 64, CANDIDATES[3]),
        (150, 403, CANDIDATES[-3]),  # ten
        (165, 100, CANDIDATES[-1]),  # its input gradient
        (15, 403, CANDIDATES[-1]),  # one location
        (15, 40000, CANDIDATES[-2]),  # no taller than the rows ask for
    ],
)
def test_choice_of_tile(rows: int, columns: int, tile: Tile) -> None:
    assert tiles.choose(rows, columns) == tile

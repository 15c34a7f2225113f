"""Stacking many arrays in few launches: MLX's own takes one launch for each array."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_tlstm.checks import require
from mlx_tlstm.kernels.library import SMALLEST, THREADS, Kernel

_PARTS = 16
_PER_GROUP = 4 * THREADS

_STACK = Kernel("stack", tuple(f"part_{i}" for i in range(_PARTS)), ("stacked",))


def _join(parts: Sequence[mx.array]) -> mx.array:
    """Flat arrays, all of one length but the last, behind one another."""
    repeated = [parts[-1]] * (_PARTS - len(parts))
    [stacked] = _STACK(
        [*parts, *repeated],
        template={"T": parts[0].dtype},
        groups=(-(-parts[0].size // _PER_GROUP), len(parts), 1),
        threads=THREADS,
        shapes=[((len(parts) - 1) * parts[0].size + parts[-1].size,)],
        dtypes=[parts[0].dtype],
    )
    return stacked


def stack(arrays: Sequence[mx.array]) -> mx.array:
    """Stack arrays of one shape and type along a new first axis, 16 in a launch.

    Raises:
        ValueError: There are none, or their shapes or types differ.
    """
    kinds = {(array.shape, array.dtype) for array in arrays}
    require(len(kinds) == 1, "stack", "arrays", "one or more of one shape and type", list(kinds))
    if arrays[0].size < SMALLEST:
        return mx.stack(list(arrays))
    parts = [array.reshape(-1) for array in arrays]
    while len(parts) > 1:
        parts = [_join(parts[i : i + _PARTS]) for i in range(0, len(parts), _PARTS)]
    return parts[0].reshape(len(arrays), *arrays[0].shape)

"""The cross-layer convolution as MLX's own matrix product between two kernels.

``unfold`` writes for each example and location all that its taps read, a row of ``windows``, and
``fold`` sums the gradient of the windows back. Shapes as in :mod:`mlx_tlstm.recurrence.contract`;
products are rounded to the arrays' type, where sums within the kernels are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels.library import PACK, THREADS, Kernel, geometry_template
from mlx_tlstm.kernels.stacking import stack
from mlx_tlstm.ops.convolution import added, steps_at_once
from mlx_tlstm.recurrence.contract import Prepared

UNFOLD = Kernel("convolution_unfold", ("hidden", "projected"), ("windows",))
FOLD = Kernel("convolution_fold", ("d_windows",), ("d_hidden", "d_projected"))


def unfold(hidden: mx.array, projected: mx.array, geometry: Geometry) -> mx.array:
    """What each location reads of H_cat (Eq. 22), ``[B·P, <K>·M]``."""
    B, M = projected.shape
    rows = B * geometry.locations
    [windows] = UNFOLD(
        [hidden, projected],
        template={"T": hidden.dtype, "M": M, **geometry_template(geometry)},
        groups=_groups(rows * geometry.taps, M),
        threads=THREADS,
        shapes=[(rows, geometry.taps * M)],
        dtypes=[hidden.dtype],
    )
    return windows


def fold(d_windows: mx.array, geometry: Geometry) -> tuple[mx.array, mx.array]:
    """Gradients for ``hidden`` and ``projected``, float32, from that of :func:`unfold`'s result."""
    B, M = d_windows.shape[0] // geometry.locations, d_windows.shape[1] // geometry.taps
    d_hidden, d_projected = FOLD(
        [d_windows],
        template={"T": d_windows.dtype, "M": M, **geometry_template(geometry)},
        groups=_groups(B * (geometry.locations + 1), M),
        threads=THREADS,
        shapes=[(B, *geometry.tensor_size, M), (B, M)],
        dtypes=[mx.float32, mx.float32],
    )
    return d_hidden, d_projected


def _groups(rows: int, channels: int) -> tuple[int, int, int]:
    """Threadgroups for so many rows of channels."""
    return -(-rows * -(-channels // PACK) // THREADS), 1, 1


def convolution(
    hidden: mx.array, projected: mx.array, prepared: Prepared, geometry: Geometry
) -> mx.array:
    """Activations before any tanh."""
    weight = prepared.weight
    windows = unfold(hidden, projected, geometry)
    A = mx.addmm(prepared.bias, windows, weight.reshape(weight.shape[0], -1).T)  # Eq. 24
    return A.reshape(*hidden.shape[:-1], -1)


def convolution_gradient(
    d_A: mx.array, prepared: Prepared, geometry: Geometry
) -> tuple[mx.array, mx.array]:
    """Gradients for ``hidden`` and ``projected``, float32."""
    O = d_A.shape[-1]
    return fold(d_A.reshape(-1, O) @ prepared.weight.reshape(O, -1), geometry)


def weight_gradient(
    hidden: Sequence[mx.array],
    projected: Sequence[mx.array],
    d_A: Sequence[mx.array],
    geometry: Geometry,
    total: Sequence[mx.array] | None,
) -> tuple[mx.array, ...]:
    """Gradients for weight and bias, float32, added to ``total``; of so many steps at once that the
    windows do not grow without bound."""
    (B, M), O = projected[0].shape, d_A[0].shape[-1]
    piece = steps_at_once(B * geometry.locations * geometry.taps * M)
    for first in range(0, len(hidden), piece):
        H, x, d = (stack(one[first : first + piece]) for one in (hidden, projected, d_A))
        windows = unfold(H.reshape(-1, *H.shape[2:]), x.reshape(-1, M), geometry)
        d = d.reshape(-1, O)
        d_bias = mx.sum(d, axis=0)
        if total is not None and d.dtype == mx.float32:
            # One launch, which adds.
            d_weight = mx.addmm(total[0].reshape(O, -1), d.T, windows)
            total = d_weight.reshape(total[0].shape), total[1] + d_bias
        else:
            d_weight = (d.T @ windows).reshape(O, *geometry.kernel_size, M)
            total = added(total, (d_weight, d_bias))
    return total

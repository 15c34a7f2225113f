"""Cross-layer convolution (Eq. 5, 22, 24) and its gradients as kernels.

Shapes as in :mod:`mlx_tlstm.recurrence.contract`. Sums are float32 whatever the type of the
arrays. The kernels read several elements at once: arrays start where MLX allocates, or a whole
number of rows of channels further on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx

from mlx_tlstm.checks import require
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import tuning, windows
from mlx_tlstm.kernels.library import PACK, Kernel, geometry_template, given
from mlx_tlstm.kernels.tiles import Tile
from mlx_tlstm.kernels.tuning import Product
from mlx_tlstm.recurrence.contract import Backend, Prepared

#: Time steps that one launch of the weight gradient serves.
STEPS = 8

_TYPES = {mx.float32, mx.float16, mx.bfloat16}

FORWARD = Kernel("convolution_forward", ("hidden", "projected", "weight", "bias"), ("activation",))
INPUT_GRADIENT = Kernel(
    "convolution_input_gradient", ("d_activation", "weight"), ("d_hidden", "d_projected")
)
WEIGHT_GRADIENT = Kernel(
    "convolution_weight_gradient",
    (
        *(f"{name}_{i}" for name in ("hidden", "projected", "d_activation") for i in range(STEPS)),
        "weight_before",
        "bias_before",
    ),
    ("d_weight", "d_bias"),
)


def _require_types(arrays: Iterable[mx.array]) -> None:
    types = {array.dtype for array in arrays}
    valid = len(types) == 1 and types <= _TYPES
    require(valid, "convolution", "dtype", "float32, float16 or bfloat16 for all arrays", types)


def _template(dtype: mx.Dtype, M: int, O: int, geometry: Geometry, tile: Tile) -> dict[str, Any]:
    return {"T": dtype, "M": M, "O": O} | geometry_template(geometry) | tile.template


def products(
    batch_size: int, M: int, O: int, geometry: Geometry, dtype: mx.Dtype, steps: int = STEPS
) -> tuple[Product, Product, Product]:
    """The products of forward pass, input gradient, and weight gradient over ``steps`` steps."""
    # The kernels see rows of channels as long as a multiple of what they read at once.
    rows, columns = batch_size * geometry.locations, geometry.taps * (-(-M // PACK) * PACK) + 1
    return (
        Product(FORWARD.name, dtype, rows, O, geometry.taps * M),
        Product(INPUT_GRADIENT.name, dtype, rows + batch_size, M, geometry.taps * O),
        Product(WEIGHT_GRADIENT.name, dtype, O, columns, steps * rows),
    )


class Convolution(Backend):
    """The convolution's share of the backend of kernels, one launch each.

    Where :func:`tuning.select` says so, MLX's own product takes a launch's place, between kernels
    that make and sum up what it multiplies (:mod:`~mlx_tlstm.kernels.windows`).

    Raises:
        ValueError: The arrays' types differ or are none of float32, float16 and bfloat16.
    """

    def convolution(
        self, hidden: mx.array, projected: mx.array, prepared: Prepared, tanh: bool = False
    ) -> mx.array:
        weight, bias, geometry = prepared.weight, prepared.bias, self.geometry
        O, M, rows = weight.shape[0], weight.shape[-1], hidden.shape[0] * geometry.locations
        product, _, _ = products(hidden.shape[0], M, O, geometry, hidden.dtype)
        inputs = [hidden, projected, weight, bias]
        _require_types(inputs)
        tile = tuning.select(product)
        if tile is None:
            A = windows.convolution(hidden, projected, prepared, geometry)
            return mx.tanh(A) if tanh else A
        [result] = FORWARD(
            inputs,
            template=_template(hidden.dtype, M, O, geometry, tile) | {"TANH": tanh},
            groups=tile.groups(rows, O),
            threads=tile.threads,
            shapes=[(*hidden.shape[:-1], O)],
            dtypes=[hidden.dtype],
        )
        return result

    def convolution_gradient(self, d_A: mx.array, prepared: Prepared) -> tuple[mx.array, mx.array]:
        weight, geometry = prepared.weight, self.geometry
        O, M, B = weight.shape[0], weight.shape[-1], d_A.shape[0]
        _, product, _ = products(B, M, O, geometry, weight.dtype)
        inputs = [d_A, weight]
        _require_types(inputs)
        tile = tuning.select(product)
        if tile is None:
            return windows.convolution_gradient(d_A, prepared, geometry)
        d_hidden, d_projected = INPUT_GRADIENT(
            inputs,
            template=_template(weight.dtype, M, O, geometry, tile),
            groups=tile.groups(product.rows, M),
            threads=tile.threads,
            shapes=[(*d_A.shape[:-1], M), (B, M)],
            dtypes=[mx.float32, mx.float32],
        )
        return d_hidden, d_projected

    def weight_gradient_steps(self, batch_size: int, hidden_size: int) -> int:
        return STEPS

    def makes_windows(self, batch_size: int, weight: mx.array) -> bool:
        O, M = weight.shape[0], weight.shape[-1]
        sizes = products(batch_size, M, O, self.geometry, weight.dtype)
        return any(tuning.select(product) is None for product in sizes)

    def weight_gradient(
        self,
        hidden: Sequence[mx.array],
        projected: Sequence[mx.array],
        d_A: Sequence[mx.array],
        total: Sequence[mx.array] | None = None,
    ) -> tuple[mx.array, mx.array]:
        series = (hidden, projected, d_A)
        lengths = tuple(map(len, series))
        valid = len(set(lengths)) == 1 and lengths[0] > 0
        require(valid, "weight_gradient", "steps", "as many in all arguments, 1 or more,", lengths)
        _require_types(itertools.chain(*series))
        O, (B, *_, M), geometry = d_A[0].shape[-1], hidden[0].shape, self.geometry
        _, _, product = products(B, M, O, geometry, hidden[0].dtype)
        tile = tuning.select(product)
        if tile is None:
            return windows.weight_gradient(*series, geometry, total)
        template = _template(hidden[0].dtype, M, O, geometry, tile)
        # A launch serves STEPS steps and adds to the sums of the one before, so that the order of
        # all sums is fixed.
        for first in range(0, lengths[0], STEPS):
            total = WEIGHT_GRADIENT(
                [*_window(series, first), *map(given, total or (None, None))],
                template=template | {"STEPS": min(STEPS, lengths[0] - first)},
                groups=tile.groups(O, product.columns),
                threads=tile.threads,
                shapes=[(O, *geometry.kernel_size, M), (O,)],
                dtypes=[mx.float32, mx.float32],
            )
        d_weight, d_bias = total
        return d_weight, d_bias


def _window(series: Sequence[Sequence[mx.array]], first: int) -> list[mx.array]:
    """Steps ``first`` … of each series, its last repeated up to :data:`STEPS`."""
    indices = [min(first + i, len(series[0]) - 1) for i in range(STEPS)]
    return list(itertools.chain.from_iterable([one[i] for i in indices] for one in series))

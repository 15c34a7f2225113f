"""Cross-layer convolution (Eq. 5, 22, 24) and its gradients as kernels.

Shapes as in :mod:`mlx_tlstm.ops.convolution`: ``B`` batch, ``*P`` tensor size, ``*K`` kernel size,
``<K>`` number of taps, ``M`` hidden channels, ``O`` output channels. Sums are float32 whatever the
type of the arrays. The kernels read several elements at once: arrays start where MLX allocates, or
a whole number of rows of channels further on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlx_tlstm import ops
from mlx_tlstm.checks import require, require_choice
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import tuning
from mlx_tlstm.kernels.library import Kernel, absent, geometry_template
from mlx_tlstm.kernels.tiles import Tile
from mlx_tlstm.kernels.tuning import Product

#: Time steps that one launch of the weight gradient serves.
STEPS = 8

#: The kernels read rows of channels by so many elements, and see them as long as a multiple of it.
PACK = 4

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


def _template(
    arrays: Sequence[mx.array], M: int, O: int, geometry: Geometry, tile: Tile
) -> dict[str, Any]:
    types = {array.dtype for array in arrays}
    valid = len(types) == 1 and types <= _TYPES
    require(valid, "convolution", "dtype", "float32, float16 or bfloat16 for all arrays", types)
    return {"T": arrays[0].dtype, "M": M, "O": O} | geometry_template(geometry) | tile.template


def products(
    batch_size: int, M: int, O: int, geometry: Geometry, dtype: mx.Dtype, steps: int = STEPS
) -> tuple[Product, Product, Product]:
    """The products of forward pass, input gradient, and weight gradient over ``steps`` steps."""
    rows, columns = batch_size * geometry.locations, geometry.taps * (-(-M // PACK) * PACK) + 1
    return (
        Product(FORWARD.name, dtype, rows, O, geometry.taps * M),
        Product(INPUT_GRADIENT.name, dtype, rows + batch_size, M, geometry.taps * O),
        Product(WEIGHT_GRADIENT.name, dtype, O, columns, steps * rows),
    )


def cross_layer_convolution(
    hidden: mx.array,
    projected: mx.array,
    weight: mx.array,
    bias: mx.array,
    geometry: Geometry,
    *,
    tile: Tile | None = None,
    activation: str | None = None,
) -> mx.array:
    """Activations A_t of all locations (Eq. 24), in one launch.

    Args:
        hidden: H_{t-1}, ``[B, *P, M]``, float32, float16 or bfloat16 like the other arrays.
        projected: x_t W^x + b^x, ``[B, M]``.
        weight: ``[O, *K, M]``.
        bias: ``[O]``.
        geometry: Tensor and kernel size.
        tile: Instead of the one that :func:`tuning.select` takes, which may be plain operations.
        activation: ``"tanh"`` gives tanh(A_t) (Eq. 7).

    Returns:
        ``[B, *P, O]``, rounded once from float32.

    Raises:
        ValueError: The arrays' types differ or are none of the three, or the activation is unknown.
    """
    require_choice("cross_layer_convolution", "activation", activation, (None, "tanh"))
    O, M, rows = weight.shape[0], weight.shape[-1], hidden.shape[0] * geometry.locations
    product, _, _ = products(hidden.shape[0], M, O, geometry, hidden.dtype)
    tile = tile or tuning.select(product)
    if tile is None:
        A = ops.cross_layer_convolution(hidden, projected, ops.transposed(weight), bias, geometry)
        return mx.tanh(A) if activation == "tanh" else A
    inputs = [hidden, projected, weight, bias]
    [result] = FORWARD(
        inputs,
        template=_template(inputs, M, O, geometry, tile) | {"TANH": activation == "tanh"},
        groups=tile.groups(rows, O),
        threads=tile.threads,
        shapes=[(*hidden.shape[:-1], O)],
        dtypes=[hidden.dtype],
    )
    return result


def cross_layer_convolution_input_gradient(
    d_activation: mx.array, weight: mx.array, geometry: Geometry, *, tile: Tile | None = None
) -> tuple[mx.array, mx.array]:
    """Gradients for ``hidden`` ``[B, *P, M]`` and ``projected`` ``[B, M]``, float32, in one launch.

    Args:
        d_activation: ``[B, *P, O]``.
        weight: ``[O, *K, M]`` of the same type.
        geometry: Tensor and kernel size.
        tile: Instead of the one that :func:`tuning.select` takes, which may be plain operations.

    Raises:
        ValueError: The arrays' types differ or are none of the three.
    """
    O, M, B = weight.shape[0], weight.shape[-1], d_activation.shape[0]
    _, product, _ = products(B, M, O, geometry, weight.dtype)
    tile = tile or tuning.select(product)
    if tile is None:
        gradients = ops.cross_layer_convolution_input_gradient(d_activation, weight, geometry)
        return tuple(gradient.astype(mx.float32) for gradient in gradients)
    inputs = [d_activation, weight]
    d_hidden, d_projected = INPUT_GRADIENT(
        inputs,
        template=_template(inputs, M, O, geometry, tile),
        groups=tile.groups(product.rows, M),
        threads=tile.threads,
        shapes=[(*d_activation.shape[:-1], M), (B, M)],
        dtypes=[mx.float32, mx.float32],
    )
    return d_hidden, d_projected


def cross_layer_convolution_weight_gradient(
    hidden: Sequence[mx.array],
    projected: Sequence[mx.array],
    d_activations: Sequence[mx.array],
    geometry: Geometry,
    *,
    total: Sequence[mx.array] | None = None,
    tile: Tile | None = None,
) -> tuple[mx.array, mx.array]:
    """Gradients for ``weight`` ``[O, *K, M]`` and ``bias`` ``[O]``, float32, summed over time.

    One launch serves :data:`STEPS` steps and adds to the sums of the one before, so the order of
    all sums is fixed.

    Args:
        hidden: Of each step ``[B, *P, M]``.
        projected: Of each step ``[B, M]``.
        d_activations: Of each step ``[B, *P, O]``.
        geometry: Tensor and kernel size.
        total: Gradients to which these are added.
        tile: Instead of the one that :func:`tuning.select` takes, which may be plain operations.

    Raises:
        ValueError: There is no step, the numbers of steps differ, or types as above.
    """
    lengths = (len(hidden), len(projected), len(d_activations))
    valid = len(set(lengths)) == 1 and lengths[0] > 0
    owner = "cross_layer_convolution_weight_gradient"
    require(valid, owner, "hidden, projected, d_activations", "of one length, 1 or more,", lengths)
    O, M = d_activations[0].shape[-1], hidden[0].shape[-1]
    B = hidden[0].shape[0]
    series = (hidden, projected, d_activations)
    dtype = hidden[0].dtype
    for first in range(0, lengths[0], STEPS):
        steps = min(STEPS, lengths[0] - first)
        _, _, product = products(B, M, O, geometry, dtype, steps)
        chosen = tile or tuning.select(product)
        if chosen is None:
            window = slice(first, first + steps)
            gradients = ops.cross_layer_convolution_weight_gradient(
                *(one[window] for one in series), geometry
            )
            gradients = [gradient.astype(mx.float32) for gradient in gradients]
            if total is not None:
                gradients = [a + b for a, b in zip(total, gradients, strict=True)]
            total = gradients
            continue
        inputs = _window(series, first)
        template = _template(inputs, M, O, geometry, chosen)
        total = WEIGHT_GRADIENT(
            [*inputs, *(total or (absent(), absent()))],
            template=template | {"STEPS": steps, "ACCUMULATE": total is not None},
            groups=chosen.groups(O, product.columns),
            threads=chosen.threads,
            shapes=[(O, *geometry.kernel_size, M), (O,)],
            dtypes=[mx.float32, mx.float32],
        )
    d_weight, d_bias = total
    return d_weight, d_bias


def _window(series: Sequence[Sequence[mx.array]], first: int) -> list[mx.array]:
    """Steps ``first`` … of each series, its last repeated up to :data:`STEPS`."""
    indices = [min(first + i, len(series[0]) - 1) for i in range(STEPS)]
    return list(itertools.chain.from_iterable([one[i] for i in indices] for one in series))

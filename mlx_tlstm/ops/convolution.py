"""Cross-layer convolution (Eq. 5, 22, 24) and its gradients.

Shapes: ``B`` batch, ``*P`` tensor size, ``*K`` kernel size, ``<K>`` number of taps, ``M`` hidden
channels, ``O`` output channels. Each convolution is one matrix product of ``B·P`` rows.
"""

from __future__ import annotations

import itertools
import math

import mlx.core as mx

from mlx_tlstm import blas
from mlx_tlstm.geometry import Geometry


def _concatenate(hidden: mx.array, projected: mx.array, geometry: Geometry) -> mx.array:
    """H_cat (Eq. 22), zero-padded so that every tap of every location lies inside.

    The projected input takes the corner just before the first location; ``hidden`` is
    ``[B, *P, M]`` and ``projected`` is ``[B, M]``.
    """
    margins = [(K // 2, K - 1 - K // 2) for K in geometry.kernel_size]
    H_cat = mx.pad(hidden, [(0, 0), *margins, (0, 0)])
    corner = tuple(before - 1 for before, _ in margins)
    H_cat[(slice(None), *corner)] = projected
    return H_cat


def _unfold(H_cat: mx.array, geometry: Geometry) -> mx.array:
    """Rows ``[B·P, <K>·M]`` that hold what each location reads."""
    B, *padded, M = H_cat.shape
    strides = [M * math.prod(padded[axis + 1 :]) for axis in range(len(padded))]
    windows = mx.as_strided(
        H_cat,
        (B, *geometry.tensor_size, *geometry.kernel_size, M),
        (M * math.prod(padded), *strides, *strides, 1),
    )
    return windows.reshape(B * geometry.locations, geometry.taps * M)


def _fold(windows: mx.array, geometry: Geometry) -> mx.array:
    """Adjoint of padding and unfolding: ``[B, *P, *K, M]`` summed into ``[B, *(P+1), M]``.

    Row 0 of each axis is the projected input's; what fell into padding is dropped.
    """
    for axis, (P, K) in enumerate(zip(geometry.tensor_size, geometry.kernel_size, strict=True)):
        # Axes before this one are folded: theirs is one array axis, the others' taps follow.
        location_axis, tap_axis = 1 + axis, 1 + geometry.axes
        folded = None
        for tap in range(K):
            # Location p (from 1) reads row p + shift; keep those inside 0 … P.
            shift = tap - K // 2
            first, last = max(1, -shift), min(P, P - shift)
            if first > last:
                continue
            index: list[slice | int] = [slice(None)] * windows.ndim
            index[location_axis], index[tap_axis] = slice(first - 1, last), tap
            part = windows[tuple(index)]
            margins = [(0, 0)] * part.ndim
            margins[location_axis] = (first + shift, P - last - shift)
            part = mx.pad(part, margins)
            folded = part if folded is None else folded + part
        windows = folded
    return windows


def transposed(weight: mx.array) -> mx.array:
    """A weight ``[O, …]`` as the matrix ``[…, O]`` that rows are multiplied by.

    Taken once a sequence: MLX's reference BLAS on Linux multiplies by a transposed view at half
    the speed, so that a copy pays there.
    """
    matrix = weight.reshape(weight.shape[0], -1).T
    slow = mx.default_device().type == mx.cpu and not blas.is_fast()
    return mx.contiguous(matrix) if slow else matrix


def cross_layer_convolution(
    hidden: mx.array,
    projected: mx.array,
    matrix: mx.array,
    bias: mx.array,
    geometry: Geometry,
) -> mx.array:
    """Activations A_t of all locations (Eq. 24).

    Args:
        hidden: H_{t-1}, ``[B, *P, M]``.
        projected: x_t W^x + b^x, ``[B, M]``.
        matrix: The weight ``[O, *K, M]``, :func:`transposed` to ``[<K>·M, O]``.
        bias: ``[O]``.

    Returns:
        ``[B, *P, O]``.
    """
    rows = _unfold(_concatenate(hidden, projected, geometry), geometry)
    A = rows @ matrix + bias  # Eq. 24
    return A.reshape(*hidden.shape[:-1], -1)


def cross_layer_convolution_input_gradient(
    d_activation: mx.array, weight: mx.array, geometry: Geometry
) -> tuple[mx.array, mx.array]:
    """Gradients for ``hidden`` ``[B, *P, M]`` and ``projected`` ``[B, M]``.

    Args:
        d_activation: ``[B, *P, O]``.
        weight: ``[O, *K, M]``.
    """
    B, O, M = d_activation.shape[0], weight.shape[0], weight.shape[-1]
    windows = d_activation.reshape(-1, O) @ weight.reshape(O, -1)
    windows = windows.reshape(B, *geometry.tensor_size, *geometry.kernel_size, M)
    d_H_cat = _fold(windows, geometry)
    corner = (slice(None), *itertools.repeat(0, geometry.axes))
    inside = (slice(None), *itertools.repeat(slice(1, None), geometry.axes))
    return d_H_cat[inside], d_H_cat[corner]


def cross_layer_convolution_weight_gradient(
    hidden: mx.array, projected: mx.array, d_activation: mx.array, geometry: Geometry
) -> tuple[mx.array, mx.array]:
    """Gradients for ``weight`` ``[O, *K, M]`` and ``bias`` ``[O]``, summed over the first axis.

    The first axis may hold time and batch together, so that one product serves many steps.

    Args:
        hidden: ``[N, *P, M]``.
        projected: ``[N, M]``.
        d_activation: ``[N, *P, O]``.
    """
    rows = _unfold(_concatenate(hidden, projected, geometry), geometry)
    d_A = d_activation.reshape(-1, d_activation.shape[-1])
    d_weight = (d_A.T @ rows).reshape(d_A.shape[-1], *geometry.kernel_size, -1)
    return d_weight, mx.sum(d_A, axis=0)

"""Cross-layer convolution (Eq. 5, 22, 24) and its gradients.

Shapes: ``B`` batch, ``*P`` tensor size, ``*K`` kernel size, ``<K>`` number of taps, ``M`` hidden
channels, ``O`` output channels. Each convolution is one matrix product of ``B·P`` rows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_tlstm import blas
from mlx_tlstm.geometry import Geometry


@functools.lru_cache(maxsize=16)
def _window_rows(geometry: Geometry, count: int) -> mx.array:
    """Which row of :func:`_windows` each tap of each location reads, for ``count`` examples."""
    location, inside, at_input = np.array([[0]]), np.array([[True]]), np.array([[True]])
    for P, K in zip(geometry.tensor_size, geometry.kernel_size, strict=True):
        # Axes so far before this one, locations before taps.
        read = np.arange(P)[:, None, None] + np.arange(K) - K // 2
        shape = (len(location) * P, -1)
        location, inside, at_input = (a[:, None, :, None] for a in (location, inside, at_input))
        location = (location * P + read).reshape(shape)
        inside = (inside & (read >= 0) & (read < P)).reshape(shape)
        at_input = (at_input & (read == -1)).reshape(shape)
    example = np.arange(count)[:, None, None]
    first_input = count * geometry.locations
    outside = np.where(at_input, first_input + example, first_input + count)
    rows = np.where(inside, example * geometry.locations + location, outside)
    return mx.array(rows.astype(np.uint32).reshape(-1))


@functools.lru_cache(maxsize=16)
def _zero_row(hidden_size: int, dtype: mx.Dtype) -> mx.array:
    return mx.array(np.zeros((1, hidden_size)), dtype)


def _windows(
    hidden: Sequence[mx.array], projected: Sequence[mx.array], geometry: Geometry
) -> mx.array:
    """What each location reads of H_cat (Eq. 22), ``[N·P, <K>·M]``.

    H_cat is the rows of all locations, then the projected inputs, which lie just before the first
    location on every axis, then a zero for what lies beyond the tensor. Gathered row by row it
    takes MLX's CPU back end a fraction of the time of a strided copy.
    """
    M, dtype = projected[0].shape[-1], projected[0].dtype
    rows = [*(H.reshape(-1, M) for H in hidden), *projected, _zero_row(M, dtype)]
    count = sum(len(x) for x in projected)
    windows = mx.take(mx.concatenate(rows), _window_rows(geometry, count), axis=0)
    return windows.reshape(-1, geometry.taps * M)


def _fold(windows: mx.array, geometry: Geometry) -> mx.array:
    """Adjoint of :func:`_windows`: ``[B, *P, *K, M]`` summed into ``[B, *(P+1), M]``.

    Row 0 of each axis is the projected input's; what lies beyond the tensor is dropped.
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
    the speed, so that a copy pays there: by joining halves, since MLX exports no mx.contiguous.
    """
    matrix = weight.reshape(weight.shape[0], -1).T
    slow = mx.default_device().type == mx.cpu and not blas.is_fast()
    half = len(matrix) // 2
    return mx.concatenate([matrix[:half], matrix[half:]]) if slow else matrix


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
    rows = _windows([hidden], [projected], geometry)
    A = mx.addmm(bias, rows, matrix)  # Eq. 24
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
    hidden: Sequence[mx.array],
    projected: Sequence[mx.array],
    d_activations: Sequence[mx.array],
    geometry: Geometry,
) -> tuple[mx.array, mx.array]:
    """Gradients for ``weight`` ``[O, *K, M]`` and ``bias`` ``[O]``, summed over steps and batch.

    One product serves all steps.

    Args:
        hidden: Of each step, ``[B, *P, M]``.
        projected: Of each step, ``[B, M]``.
        d_activations: Of each step, ``[B, *P, O]``.
    """
    rows = _windows(hidden, projected, geometry)
    d_A = mx.concatenate([d.reshape(-1, d.shape[-1]) for d in d_activations])
    d_weight = (d_A.T @ rows).reshape(d_A.shape[-1], *geometry.kernel_size, -1)
    return d_weight, mx.sum(d_A, axis=0)

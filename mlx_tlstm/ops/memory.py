"""Memory-cell update: gates, memory-cell convolution, normalisation (Eq. 11-13, 15-21, 31).

Everything here is float32 whatever the weights' type. Shapes: ``[B, *P, M]`` for a state,
``[B, *P, <K>]`` for the dynamic kernels Q.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.ops.activations import sigmoid, tanh

#: Inside the root of both normalisations (the paper gives none).
EPSILON = 1e-5


class Residuals(NamedTuple):
    """What the backward pass of one update needs; ``None`` where the variant has no such part."""

    G: mx.array  # new content [B, *P, M]
    IFO: mx.array  # input, forget and output gate [B, *P, 3M]
    Q: mx.array | None  # dynamic kernels [B, *P, <K>]
    C_conv: mx.array | None  # convolved memory [B, *P, M]
    C_hat: mx.array | None  # normalised memory before gain and bias [B, *P, M]
    scale: mx.array | None  # 1 / standard deviation
    Z: mx.array  # tanh(Norm(C)) [B, *P, M]


@dataclasses.dataclass(frozen=True)
class MemoryUpdate:
    """Which memory update a cell has.

    Args:
        hidden_size: M.
        geometry: Tensor and kernel size; ``None`` without memory convolution.
        norm: ``None``, ``"channel"`` (over M) or ``"layer"`` (over all locations and channels).
    """

    hidden_size: int
    geometry: Geometry | None
    norm: str | None


@functools.lru_cache(maxsize=64)
def _tap_matrices(geometry: Geometry) -> tuple[mx.array | None, mx.array]:
    """Constants of the memory convolution, as products with 0/1 matrices.

    All tensor axes but the last are read as rows: the first array ``[R·<K'>, R]`` copies the rows
    that the leading taps of each row read (``None`` for one axis, where there is a single row);
    the second ``[P, K, P]`` places the taps of the last axis.
    """
    *leading, last = geometry.clamped_taps
    if not leading:
        return None, mx.array(last)
    rows = leading[0]
    for taps in leading[1:]:
        R, K, _ = rows.shape
        P, K_next, _ = taps.shape
        rows = np.einsum("rks,pjq->rpkjsq", rows, taps).reshape(R * P, K * K_next, R * P)
    return mx.array(rows.reshape(-1, rows.shape[-1])), mx.array(last)


def _source_rows(C: mx.array, geometry: Geometry) -> mx.array:
    """What the rows of the tensor read, ``[B, R, <K'>·P, M]`` with P the last axis's size."""
    copies, _ = _tap_matrices(geometry)
    B, M, P = C.shape[0], C.shape[-1], geometry.tensor_size[-1]
    if copies is not None:
        C = copies @ C.reshape(B, -1, P * M)
    return C.reshape(B, geometry.locations // P, -1, M)


def _mixing_matrices(Q: mx.array, geometry: Geometry) -> mx.array:
    """Q as matrices ``[B, R, P, <K'>·P]`` that mix the source rows."""
    _, taps = _tap_matrices(geometry)
    B, P, K = Q.shape[0], geometry.tensor_size[-1], geometry.kernel_size[-1]
    Q = Q.reshape(B, geometry.locations // P, P, -1, K).transpose(2, 0, 1, 3, 4)
    S = (Q.reshape(P, -1, K) @ taps).reshape(P, B, geometry.locations // P, -1)
    return S.transpose(1, 2, 0, 3)


def memory_convolution(C: mx.array, Q: mx.array, geometry: Geometry) -> mx.array:
    """C_conv of all locations with repeated boundary (Eq. 16, 17, 25), ``[B, *P, M]``."""
    C_conv = _mixing_matrices(Q, geometry) @ _source_rows(C, geometry)
    return C_conv.reshape(C.shape)


def memory_convolution_backward(
    C: mx.array, Q: mx.array, d_C_conv: mx.array, geometry: Geometry
) -> tuple[mx.array, mx.array]:
    """Gradients of :func:`memory_convolution` for C ``[B, *P, M]`` and Q ``[B, *P, <K>]``."""
    copies, taps = _tap_matrices(geometry)
    B, M, P, K = C.shape[0], C.shape[-1], geometry.tensor_size[-1], geometry.kernel_size[-1]
    R = geometry.locations // P
    d_C_conv = d_C_conv.reshape(B, R, P, M)
    d_C = _mixing_matrices(Q, geometry).swapaxes(-1, -2) @ d_C_conv
    if copies is not None:
        d_C = copies.T @ d_C.reshape(B, -1, P * M)
    d_S = d_C_conv @ _source_rows(C, geometry).swapaxes(-1, -2)
    d_S = d_S.transpose(2, 0, 1, 3).reshape(P, -1, P)
    d_Q = (d_S @ taps.swapaxes(-1, -2)).reshape(P, B, R, -1, K).transpose(1, 2, 0, 3, 4)
    return d_C.reshape(C.shape), d_Q.reshape(Q.shape)


def _statistics_axes(update: MemoryUpdate, C: mx.array) -> tuple[int, ...]:
    return (-1,) if update.norm == "channel" else tuple(range(1, C.ndim))


def memory_update(
    A: mx.array,
    C_before: mx.array,
    gain: mx.array | None,
    bias: mx.array | None,
    update: MemoryUpdate,
) -> tuple[mx.array, mx.array, Residuals]:
    """New hidden state and memory cell from the activations (Eq. 15-19, 31).

    Args:
        A: Activations g, i, f, o and, with memory convolution, q: ``[B, *P, 4M (+ <K>)]``.
        C_before: C_{t-1}, ``[B, *P, M]`` float32.
        gain: Gain of the normalisation, ``[*P, M]``, or ``None``.
        bias: Bias of the normalisation, likewise.

    Returns:
        H_t and C_t in float32, and what :func:`memory_update_backward` needs.
    """
    M = update.hidden_size
    A = A.astype(mx.float32)
    G = tanh(A[..., :M])  # Eq. 15
    IFO = sigmoid(A[..., M : 4 * M])
    I, F, O = IFO[..., :M], IFO[..., M : 2 * M], IFO[..., 2 * M :]
    if update.geometry is None:
        Q, C_conv, carried = None, None, C_before
    else:
        Q = mx.softmax(A[..., 4 * M :], axis=-1)
        C_conv = carried = memory_convolution(C_before, Q, update.geometry)
    C = G * I + carried * F  # Eq. 18 (Eq. 12 without memory convolution)
    if update.norm is None:
        C_hat = scale = None
        Z = tanh(C)
    else:
        axes = _statistics_axes(update, C)
        centred = C - mx.mean(C, axis=axes, keepdims=True)
        scale = mx.rsqrt(mx.mean(mx.square(centred), axis=axes, keepdims=True) + EPSILON)
        C_hat = centred * scale  # Eq. 21
        Z = tanh(C_hat * gain + bias)  # Eq. 20
    H = Z * O  # Eq. 31 (Eq. 19 without normalisation)
    return H, C, Residuals(G, IFO, Q, C_conv, C_hat, scale, Z)


def memory_update_backward(
    d_H: mx.array,
    d_C: mx.array,
    C_before: mx.array,
    gain: mx.array | None,
    residuals: Residuals,
    update: MemoryUpdate,
) -> tuple[mx.array, mx.array, tuple[mx.array, ...]]:
    """Gradient of :func:`memory_update`.

    Args:
        d_H: Gradient of H_t, float32.
        d_C: Gradient of C_t from the step after.

    Returns:
        The gradients of A and of C_before, and those of gain and bias (empty without
        normalisation).
    """
    M = update.hidden_size
    G, IFO, Q, C_conv, C_hat, scale, Z = residuals
    I, F, O = IFO[..., :M], IFO[..., M : 2 * M], IFO[..., 2 * M :]
    d_N = d_H * O * (1 - mx.square(Z))
    if update.norm is None:
        d_C = d_C + d_N
        d_norm: tuple[mx.array, ...] = ()
    else:
        axes = _statistics_axes(update, d_N)
        d_norm = (mx.sum(d_N * C_hat, axis=0), mx.sum(d_N, axis=0))
        d_hat = d_N * gain
        along = mx.mean(d_hat * C_hat, axis=axes, keepdims=True)
        d_C = d_C + (d_hat - mx.mean(d_hat, axis=axes, keepdims=True) - C_hat * along) * scale
    carried = C_before if C_conv is None else C_conv
    d_IFO = mx.concatenate([d_C * G, d_C * carried, d_H * Z], axis=-1)
    d_A = [d_C * I * (1 - mx.square(G)), d_IFO * IFO * (1 - IFO)]
    d_C_before = d_C * F
    if update.geometry is not None:
        d_C_before, d_Q = memory_convolution_backward(C_before, Q, d_C_before, update.geometry)
        d_A.append(Q * (d_Q - mx.sum(d_Q * Q, axis=-1, keepdims=True)))
    return mx.concatenate(d_A, axis=-1), d_C_before, d_norm

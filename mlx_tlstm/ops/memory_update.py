"""Memory-cell update: gates, memory-cell convolution, normalisation (Eq. 11-13, 15-21, 31).

Everything here is float32 whatever the weights' type. Shapes: ``[B, *P, M]`` for a state,
``[B, *P, <K>]`` for the dynamic kernels Q.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.ops.convolution import added
from mlx_tlstm.ops.cpu import channel_mean, tanh
from mlx_tlstm.recurrence.contract import EPSILON, Backend, MemoryUpdate, Prepared, Step
from mlx_tlstm.recurrence.ordering import after


class Residuals(NamedTuple):
    """What the backward pass of one update needs; ``None`` where the variant has no such part."""

    T: mx.array  # tanh(A), of half A for the gates: [B, *P, 4M (+ <K>)]
    Q: mx.array | None  # dynamic kernels [B, *P, <K>]
    C_conv: mx.array | None  # convolved memory [B, *P, M]
    C_hat: mx.array | None  # normalised memory before gain and bias [B, *P, M]
    scale: mx.array | None  # 1 / standard deviation
    Z: mx.array  # tanh(Norm(C)) [B, *P, M]

    @property
    def G(self) -> mx.array:
        """New content, ``[B, *P, M]``; likewise the gates."""
        return _channels(self.T, 0, self.Z.shape[-1])

    @property
    def I(self) -> mx.array:
        """Input gate."""
        return _gate(self.T, 1, self.Z.shape[-1])

    @property
    def F(self) -> mx.array:
        """Forget gate."""
        return _gate(self.T, 2, self.Z.shape[-1])

    @property
    def O(self) -> mx.array:
        """Output gate."""
        return _gate(self.T, 3, self.Z.shape[-1])


def _channels(T: mx.array, index: int, hidden_size: int) -> mx.array:
    return T[..., index * hidden_size : (index + 1) * hidden_size]


def _gate(T: mx.array, index: int, hidden_size: int) -> mx.array:
    """The logistic function of A from T = tanh(A / 2)."""
    return 0.5 * _channels(T, index, hidden_size) + 0.5


class MemoryGradient(NamedTuple):
    """What the backward pass of a step hands to the step before it; all float32.

    Attributes:
        C: Gradient of C_{t-1}, ``[B, *P, M]``.
        norm: Sums over this step and those after of the gradients of gain and bias, if any, of each
            example: ``[B, *P, M]``.
    """

    C: mx.array
    norm: tuple[mx.array, ...]


#: Locations up to which tensor axes are taken together in one matrix product.
_MERGED_LOCATIONS = 128


def _merge(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The 0/1 arrays ``[P, K, P]`` of two axes as that of both, in row-major order."""
    (P, K, _), (P_next, K_next, _) = first.shape, second.shape
    merged = np.einsum("pkq,rjs->prkjqs", first, second)
    return merged.reshape(P * P_next, K * K_next, P * P_next)


@functools.lru_cache(maxsize=64)
def _tap_matrices(geometry: Geometry) -> tuple[mx.array | None, mx.array]:
    """Constants of the memory convolution, as products with 0/1 matrices.

    The last axis, or the last ones where they are small, are mixed by matrices: the second array
    ``[P', <K'>, P']`` places their taps. The axes before are read as R rows: the first array
    ``[R·<K''>, R]`` copies the rows that each row's taps read; ``None`` where there is one row.
    """
    *leading, mixed = geometry.clamped_taps
    while leading and leading[-1].shape[0] * mixed.shape[0] <= _MERGED_LOCATIONS:
        mixed = _merge(leading.pop(), mixed)
    if not leading:
        return None, mx.array(mixed)
    rows = functools.reduce(_merge, leading)
    return mx.array(rows.reshape(-1, rows.shape[-1])), mx.array(mixed)


def _source_rows(C: mx.array, geometry: Geometry) -> mx.array:
    """What the rows of the tensor read, ``[B·R, <K''>·P', M]``."""
    copies, taps = _tap_matrices(geometry)
    (B, *_, M), (P, K, _) = C.shape, taps.shape
    if copies is not None:
        C = copies @ C.reshape(B, -1, P * M)
    return C.reshape(B * geometry.locations // P, geometry.taps // K * P, M)


def _mixing_matrices(Q: mx.array, geometry: Geometry) -> mx.array:
    """Q as matrices ``[B·R, P', <K''>·P']`` that mix the source rows."""
    _, taps = _tap_matrices(geometry)
    P, K, _ = taps.shape
    rows, reads = Q.shape[0] * geometry.locations // P, geometry.taps // K
    Q = Q.reshape(rows, P, geometry.taps).transpose(1, 0, 2)
    S = Q.reshape(P, rows * reads, K) @ taps
    return S.reshape(P, rows, reads * P).transpose(1, 0, 2)


def memory_convolution(C: mx.array, Q: mx.array, geometry: Geometry) -> mx.array:
    """C_conv of all locations with repeated boundary (Eq. 16, 17, 25), ``[B, *P, M]``."""
    C_conv = _mixing_matrices(Q, geometry) @ _source_rows(C, geometry)
    return C_conv.reshape(C.shape)


def memory_convolution_backward(
    C: mx.array, Q: mx.array, d_C_conv: mx.array, geometry: Geometry
) -> tuple[mx.array, mx.array]:
    """Gradients of :func:`memory_convolution` for C ``[B, *P, M]`` and Q ``[B, *P, <K>]``."""
    copies, taps = _tap_matrices(geometry)
    (B, *_, M), (P, K, _) = C.shape, taps.shape
    rows, reads = B * geometry.locations // P, geometry.taps // K
    d_C_conv = d_C_conv.reshape(rows, P, M)
    d_C = _mixing_matrices(Q, geometry).swapaxes(-1, -2) @ d_C_conv
    if copies is not None:
        d_C = copies.T @ d_C.reshape(B, -1, P * M)
    d_S = d_C_conv @ _source_rows(C, geometry).swapaxes(-1, -2)
    d_S = d_S.transpose(1, 0, 2).reshape(P, rows * reads, P)
    d_Q = (d_S @ taps.swapaxes(-1, -2)).reshape(P, rows, geometry.taps).transpose(1, 0, 2)
    return d_C.reshape(C.shape), d_Q.reshape(Q.shape)


@functools.lru_cache(maxsize=64)
def _gate_scale(hidden_size: int, taps: int) -> mx.array:
    """What A's channels g, i, f, o and q are multiplied by, so that one tanh serves all gates."""
    return mx.array(np.repeat([1, 0.5, 0], [hidden_size, 3 * hidden_size, taps]).astype(np.float32))


def _mean(x: mx.array, update: MemoryUpdate) -> mx.array:
    """Mean over the channels, or over the whole tensor for layer normalisation; axes are kept."""
    if update.norm == "layer":
        return mx.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True)
    return channel_mean(x)


@functools.lru_cache(maxsize=64)
def _last_rows(count: int, locations: int) -> mx.array:
    return mx.array(np.arange(1, count + 1, dtype=np.uint32) * locations - 1)


def added_at_the_end(array: mx.array, terms: mx.array, axes: int) -> mx.array:
    """``array [B, *P, …]`` with ``terms [B, …]`` added at the last index of its ``axes`` P.

    Padded, since MLX's vmap of ``array.at[…].add`` is wrong where it goes over ``array`` alone.
    """
    before = [(size - 1, 0) for size in array.shape[1 : 1 + axes]]
    terms = terms.reshape(terms.shape[0], *[1] * axes, *terms.shape[1:])
    return array + mx.pad(terms, [(0, 0), *before, *[(0, 0)] * (array.ndim - 1 - axes)])


class Memory(Backend):
    """The memory update's share of the plain backend."""

    def memory_update(
        self, A: mx.array, C_before: mx.array, prepared: Prepared
    ) -> tuple[mx.array, mx.array, mx.array, Residuals]:
        update, M = self.update, C_before.shape[-1]
        T = tanh(A.astype(mx.float32) * _gate_scale(M, A.shape[-1] - 4 * M))
        G, I, F, O = _channels(T, 0, M), *(_gate(T, index, M) for index in (1, 2, 3))  # Eq. 15
        if update.convolve:
            Q = mx.softmax(A[..., 4 * M :].astype(mx.float32), axis=-1)
            C_conv = carried = memory_convolution(C_before, Q, self.geometry)
        else:
            Q, C_conv, carried = None, None, C_before
        C = G * I + carried * F  # Eq. 18 (Eq. 12 without memory convolution)
        if update.norm is None:
            C_hat = scale = None
            Z = tanh(C)
        else:
            centred = C - _mean(C, update)
            scale = mx.rsqrt(_mean(mx.square(centred), update) + EPSILON)
            C_hat = centred * scale  # Eq. 21
            Z = tanh(C_hat * prepared.norm_gain + prepared.norm_bias)  # Eq. 20
        H = (Z * O).astype(prepared.weight.dtype)  # Eq. 19, 31
        return H, C, self.output(H), Residuals(T, Q, C_conv, C_hat, scale, Z)

    def restore(
        self, residuals: None, A: mx.array, C_before: mx.array, prepared: Prepared
    ) -> Residuals:
        return self.memory_update(A, C_before, prepared)[-1]

    def memory_gradient(
        self,
        d_H: mx.array,
        d_output: mx.array | None,
        d_C: mx.array | None,
        later: MemoryGradient | None,
        step: Step,
        prepared: Prepared,
    ) -> tuple[mx.array, MemoryGradient]:
        update, C_before = self.update, step.before[1]
        d_norm_after = later.norm if later is not None else ()
        if later is not None:
            d_C = later.C if d_C is None else later.C + d_C
        elif d_C is None:
            d_C = mx.zeros(d_H.shape)
        d_H = self.with_output(d_H, d_output)
        T, Q, C_conv, C_hat, scale, Z = step.residuals
        # Without it mx.compile would share the gates and the mixing matrices with the forward pass,
        # which would keep them.
        if Q is None:
            (T,) = after([T], [d_H])
        else:
            T, Q, C_before = after([T, Q, C_before], [d_H])
        # Each product is written with factors of its own, so that none is an array that several
        # read: mx.compile then makes one loop of each. I (1 - I) = (1 - T_i²) / 4.
        M = Z.shape[-1]
        T_g, T_i, T_f, T_o = (_channels(T, index, M) for index in range(4))
        d_N = d_H * (0.5 * T_o + 0.5) * (1 - Z * Z)
        d_norm: tuple[mx.array, ...] = ()
        if update.norm is None:
            d_C = d_C + d_N
        else:
            d_norm = added(d_norm_after, (d_N * C_hat, d_N))
            d_hat = d_N * prepared.norm_gain
            along = _mean(d_hat * C_hat, update)
            d_C = d_C + (d_hat - _mean(d_hat, update) - C_hat * along) * scale
            # Otherwise MLX adds up at the end, and until then keeps every step's terms.
            (d_C,) = after([d_C], d_norm)
        carried = C_before if C_conv is None else C_conv
        d_A = [
            d_C * (0.5 * T_i + 0.5) * (1 - T_g * T_g),
            d_C * T_g * (0.25 - 0.25 * T_i * T_i),
            d_C * carried * (0.25 - 0.25 * T_f * T_f),
            d_H * Z * (0.25 - 0.25 * T_o * T_o),
        ]
        d_C_before = d_C * (0.5 * T_f + 0.5)
        if update.convolve:
            d_C_before, d_Q = memory_convolution_backward(C_before, Q, d_C_before, self.geometry)
            d_A.append(Q * (d_Q - mx.sum(d_Q * Q, axis=-1, keepdims=True)))
        # As matrices, which MLX joins faster than arrays of more axes.
        joined = mx.concatenate([d.reshape(-1, d.shape[-1]) for d in d_A], axis=-1)
        joined = joined.reshape(T.shape).astype(prepared.weight.dtype)
        return joined, MemoryGradient(d_C_before, d_norm)

    def first_gradients(self, handed: MemoryGradient) -> tuple[mx.array, Sequence[mx.array]]:
        return handed.C, [mx.sum(d, axis=0) for d in handed.norm]

    def with_output(self, d_H: mx.array, d_output: mx.array | None) -> mx.array:
        """``d_H`` with the gradient of the output, if any, added at the last location."""
        if d_output is None:
            return d_H
        return added_at_the_end(d_H, d_output, self.geometry.axes)

    def output(self, H: mx.array) -> mx.array:
        # A copy, since a view would keep the whole state of every step alive. Gathered, since
        # mx.export_function cannot write mx.contiguous.
        B, *P, M = H.shape
        return mx.take(H.reshape(-1, M), _last_rows(B, math.prod(P)), axis=0)

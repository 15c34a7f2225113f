"""Cross-layer convolution (Eq. 5, 22, 24) and its gradients: products of ``B·P`` rows each.

Shapes as in :mod:`mlx_tlstm.recurrence.contract`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.ops import cpu
from mlx_tlstm.recurrence.contract import Backend, Prepared
from mlx_tlstm.recurrence.ordering import after

#: Largest number of elements of the matrix from which a weight gradient is formed (64 MiB).
_WEIGHT_GRADIENT_ELEMENTS = 1 << 24
#: Rows of it from which on more make the product no quicker, and leave the caches.
_WEIGHT_GRADIENT_ROWS = 1 << 12
#: Sizes whose index arrays are kept: a deep layer flushes its outputs by steps of many sizes.
_CONSTANTS = 128


@functools.lru_cache(maxsize=_CONSTANTS)
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


#: Locations up to which tensor axes are folded by one matrix.
_FOLDED_LOCATIONS = 32


@functools.lru_cache(maxsize=_CONSTANTS)
def _fold_matrices(geometry: Geometry) -> tuple[tuple[int, mx.array], ...]:
    """What :func:`_fold` multiplies by: axes together where they are small, the last axes first.

    Each with its number of locations P'. Its matrix ``[<K''>·P', P'·<K''>·<K'>]`` sums up what
    their taps K' read, and leaves the taps K'' of the axes before as they are.
    """
    groups: list[np.ndarray] = []  # [P', P', <K'>]: 1 where the second reads the first
    for P, K in zip(reversed(geometry.tensor_size), reversed(geometry.kernel_size), strict=True):
        location = np.arange(P)
        read = location[:, None] + np.arange(K) - K // 2
        reads = location[:, None, None] == read
        if groups and P * len(groups[-1]) <= _FOLDED_LOCATIONS:
            merged = np.einsum("qpk,rsj->qrpskj", reads, groups[-1])
            rows = P * len(groups[-1])
            groups[-1] = merged.reshape(rows, rows, -1)
        else:
            groups.append(reads)
    matrices, before = [], geometry.taps
    for reads in groups:
        before //= reads.shape[-1]
        matrix = np.einsum("qpk,ab->aqpbk", reads, np.eye(before, dtype=bool))
        matrix = matrix.reshape(before * len(reads), -1).astype(np.float32)
        matrices.append((len(reads), mx.array(matrix)))
    return tuple(matrices)


@functools.lru_cache(maxsize=_CONSTANTS)
def _input_windows(geometry: Geometry, count: int) -> mx.array:
    """Which rows of M of :func:`_windows` are the projected inputs of ``count`` examples."""
    rows = np.asarray(_window_rows(geometry, count))
    first_input = count * geometry.locations
    read = np.flatnonzero((rows >= first_input) & (rows < first_input + count))
    return mx.array(read.astype(np.uint32))


def _fold(windows: mx.array, count: int, geometry: Geometry) -> tuple[mx.array, mx.array]:
    """Adjoint of :func:`_windows`: sums for hidden ``[N, *P, M]`` and projected ``[N, M]``.

    As products with 0/1 matrices, which take a fraction of the time of adding shifted slices.
    """
    windows = windows.astype(mx.float32).reshape(count * geometry.locations * geometry.taps, -1)
    columns = windows.shape[-1]
    projected = mx.take(windows, _input_windows(geometry, count), axis=0)
    if len(projected) > count:
        projected = projected.reshape(count, -1, columns).sum(axis=1)
    # Otherwise MLX could take these rows at the end, and keep every step's windows until then.
    (hidden,) = after([windows], [projected])
    for locations, matrix in _fold_matrices(geometry):
        hidden = matrix @ hidden.reshape(-1, matrix.shape[1], columns)
        columns *= locations
    return hidden.reshape(count, *geometry.tensor_size, -1), projected


class Convolution(Backend):
    """The convolution's share of the plain backend."""

    def prepare(self, parameters: Sequence[mx.array]) -> Prepared:
        prepared = super().prepare(parameters)
        return prepared._replace(matrix=cpu.transposed(prepared.weight))

    def convolution(
        self, hidden: mx.array, projected: mx.array, prepared: Prepared, tanh: bool = False
    ) -> mx.array:
        rows = _windows([hidden], [projected], self.geometry)
        A = mx.addmm(prepared.bias, rows, prepared.matrix)  # Eq. 24
        A = A.reshape(*hidden.shape[:-1], -1)
        return mx.tanh(A) if tanh else A  # Eq. 7

    def convolution_gradient(self, d_A: mx.array, prepared: Prepared) -> tuple[mx.array, mx.array]:
        B, O = d_A.shape[0], d_A.shape[-1]
        windows = d_A.reshape(-1, O) @ prepared.weight.reshape(O, -1)
        return _fold(windows, B, self.geometry)

    def weight_gradient_steps(self, batch_size: int, hidden_size: int) -> int:
        by_rows = _WEIGHT_GRADIENT_ROWS // (batch_size * self.geometry.locations)
        elements = batch_size * self.geometry.locations * self.geometry.taps * hidden_size
        return max(1, min(by_rows, steps_at_once(elements)))

    def weight_gradient(
        self,
        hidden: Sequence[mx.array],
        projected: Sequence[mx.array],
        d_A: Sequence[mx.array],
        total: Sequence[mx.array] | None = None,
    ) -> tuple[mx.array, mx.array]:
        if len(hidden) == 1:
            # mx.compile would take the forward pass's windows for these, and keep every step's.
            hidden, projected = ([array] for array in after([*hidden, *projected], d_A))
        rows = _windows(hidden, projected, self.geometry)
        d_A = mx.concatenate([d.reshape(-1, d.shape[-1]) for d in d_A])
        d_weight = (d_A.T @ rows).reshape(d_A.shape[-1], *self.geometry.kernel_size, -1)
        return added(total, (d_weight, mx.sum(d_A, axis=0)))


def steps_at_once(elements: int) -> int:
    """Steps whose weight gradient is formed from one matrix, with so many elements of each."""
    return max(1, _WEIGHT_GRADIENT_ELEMENTS // elements)


def added(total: Sequence[mx.array] | None, terms: Sequence[mx.array]) -> tuple[mx.array, ...]:
    """Sum in float32; no total, or an empty one, is zero."""
    terms = tuple(term.astype(mx.float32) for term in terms)
    return tuple(a + b for a, b in zip(total, terms, strict=True)) if total else terms

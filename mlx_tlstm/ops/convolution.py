"""Cross-layer convolution (Eq. 5, 22, 24) and its gradients: products of ``B·P`` rows each.

Shapes as in :mod:`mlx_tlstm.recurrence.contract`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.ops import cpu
from mlx_tlstm.recurrence.contract import Backend, Prepared

#: Largest number of elements of the matrix from which a weight gradient is formed (64 MiB).
_WEIGHT_GRADIENT_ELEMENTS = 1 << 24


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
        geometry, weight = self.geometry, prepared.weight
        B, O, M = d_A.shape[0], weight.shape[0], weight.shape[-1]
        windows = d_A.reshape(-1, O) @ weight.reshape(O, -1)
        windows = windows.reshape(B, *geometry.tensor_size, *geometry.kernel_size, M)
        d_H_cat = _fold(windows, geometry)
        corner = (slice(None), *itertools.repeat(0, geometry.axes))
        inside = (slice(None), *itertools.repeat(slice(1, None), geometry.axes))
        return d_H_cat[inside].astype(mx.float32), d_H_cat[corner]

    def weight_gradient_steps(self, batch_size: int, hidden_size: int) -> int:
        return steps_at_once(self.gathered(batch_size, hidden_size))

    def gathered(self, batch_size: int, hidden_size: int) -> int:
        """Elements of the matrix from which the weight gradient of one step is formed."""
        return batch_size * self.geometry.locations * self.geometry.taps * hidden_size

    def weight_gradient(
        self,
        hidden: Sequence[mx.array],
        projected: Sequence[mx.array],
        d_A: Sequence[mx.array],
        total: Sequence[mx.array] | None = None,
    ) -> tuple[mx.array, mx.array]:
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

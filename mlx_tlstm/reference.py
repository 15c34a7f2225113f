"""The tRNN and the tLSTM as the paper has them: a function for each equation, in its order.

Nothing here is arranged for speed; :mod:`mlx_tlstm.ops` and :mod:`mlx_tlstm.kernels` compute the
same numbers quickly. ``backend="reference"`` runs a layer on it, on any device and with any number
of tensor axes. Eq. 5's product with W^x is the cell's ``input_projection``.

Shapes: ``B`` batch, ``*P`` tensor size, ``*K`` kernel size, ``<K>`` number of taps, ``M`` channels.
A location is p = 1 … P on each axis; index 0 of H_cat is the projected input's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import mlx.core as mx

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.recurrence.contract import EPSILON, Backend, MemoryUpdate, Prepared, Step
from mlx_tlstm.recurrence.ordering import after


def concatenated(H: mx.array, x: mx.array) -> mx.array:
    """Eq. 5, 22: H_cat ``[B, *(P+1), M]``, x at index 0 of all axes, H at 1 … P, else zero."""
    B, *P, M = H.shape
    corner = mx.pad(x.reshape(B, *(1 for _ in P), M), [(0, 0), *((0, n) for n in P), (0, 0)])
    return corner + mx.pad(H, [(0, 0), *((1, 0) for _ in P), (0, 0)])


def taps(array: mx.array, geometry: Geometry, first: int, mode: str) -> list[mx.array]:
    """What each tap of every location reads, ``<K>`` of ``[B, *P, …]``: Eq. 24, 25's indices.

    Tap k = 0 … K - 1 of location p reads place p + k - floor(K/2) of ``array``, whose location 1
    has the index ``first``. Beyond the array there are zeros (``mode`` "constant") or its boundary
    repeated ("edge").
    """
    P, K = geometry.tensor_size, geometry.kernel_size
    beyond = [(0, 0), *((k // 2, k - 1 - k // 2) for k in K), (0, 0)]
    padded = mx.pad(array, beyond, mode=mode)
    starts = itertools.product(*(range(first, first + k) for k in K))
    return [
        padded[(slice(None), *(slice(s, s + n) for s, n in zip(start, P, strict=True)))]
        for start in starts
    ]


def convolved(H_cat: mx.array, W: mx.array, b: mx.array, geometry: Geometry) -> mx.array:
    """Eq. 6, 14, 24: A ``[B, *P, O]``, the activations, with W ``[O, *K, M]``."""
    kernels = W.reshape(len(W), geometry.taps, -1)
    rows = taps(H_cat, geometry, 1, "constant")
    return sum((row @ kernels[:, k].T for k, row in enumerate(rows)), b)


def tanh_hidden(A: mx.array) -> mx.array:
    """Eq. 7: H of a tRNN."""
    return mx.tanh(A)


def output(H: mx.array) -> mx.array:
    """Eq. 8, 23: what is read at the corner far from the input, ``[B, M]``."""
    return H[(slice(None), *[-1] * (H.ndim - 2))]


def gates(A: mx.array, M: int) -> tuple[mx.array, ...]:
    """Eq. 11, 15: new content G, gates I, F, O, and Q ``[B, *P, <K>]`` if A has such channels."""
    g, i, f, o = (A[..., n * M : (n + 1) * M] for n in range(4))
    q = A[..., 4 * M :]
    Q = mx.softmax(q, axis=-1) if q.shape[-1] else None
    return mx.tanh(g), mx.sigmoid(i), mx.sigmoid(f), mx.sigmoid(o), Q


def convolved_memory(C: mx.array, Q: mx.array, geometry: Geometry) -> mx.array:
    """Eq. 16, 17, 25: C_conv, with a kernel Q of its own for each location."""
    reads = taps(C, geometry, 0, "edge")
    return sum(read * Q[..., k, None] for k, read in enumerate(reads))


def memory(G: mx.array, I: mx.array, F: mx.array, C_conv: mx.array) -> mx.array:
    """Eq. 18, and Eq. 12 where C_conv is C itself: the next memory cell."""
    return G * I + C_conv * F


def standardized(C: mx.array, norm: str) -> mx.array:
    """Eq. 21: C with mean 0 and deviation 1 over its channels, or over the whole tensor."""
    axes = -1 if norm == "channel" else tuple(range(1, C.ndim))
    centred = C - mx.mean(C, axis=axes, keepdims=True)
    return centred / mx.sqrt(mx.mean(centred**2, axis=axes, keepdims=True) + EPSILON)


def normalized(C_hat: mx.array, gain: mx.array, bias: mx.array) -> mx.array:
    """Eq. 20: gain and bias are ``[*P, M]``."""
    return C_hat * gain + bias


def hidden_of_memory(Z: mx.array, O: mx.array) -> mx.array:
    """Eq. 13, 19, and Eq. 31 where Z is Norm(C): the next hidden state of a tLSTM."""
    return mx.tanh(Z) * O


def updated(
    A: mx.array, C: mx.array, norm: Sequence[mx.array], update: MemoryUpdate, geometry: Geometry
) -> tuple[mx.array, mx.array, mx.array]:
    """Eq. 15-21, 31: hidden state, memory cell and output from the activations, in float32."""
    G, I, F, O, Q = gates(A.astype(mx.float32), C.shape[-1])
    C = memory(G, I, F, convolved_memory(C, Q, geometry) if update.convolve else C)
    Z = normalized(standardized(C, update.norm), *norm) if update.norm else C
    H = hidden_of_memory(Z, O)
    return H, C, output(H)


class ReferenceBackend(Backend):
    """The equations; each gradient is MLX's own, of one step at a time."""

    # MLX's own gradient needs more; this was enough for every case of the tests.
    products_kept: ClassVar[int] = 6

    def convolution(
        self, hidden: mx.array, projected: mx.array, prepared: Prepared, tanh: bool = False
    ) -> mx.array:
        A = self._activations(hidden, projected, prepared.weight, prepared.bias)
        return (tanh_hidden(A) if tanh else A).astype(hidden.dtype)

    def _activations(self, *arrays: mx.array) -> mx.array:
        H, x, W, b = (array.astype(mx.float32) for array in arrays)
        return convolved(concatenated(H, x), W, b, self.geometry)

    def convolution_gradient(self, d_A: mx.array, prepared: Prepared) -> tuple[mx.array, mx.array]:
        # The convolution is linear: its gradient is the same everywhere.
        W, b, M = prepared.weight, prepared.bias, prepared.weight.shape[-1]
        zeros = [mx.zeros((*d_A.shape[:-1], M)), mx.zeros((len(d_A), M))]
        cotangent = d_A.astype(mx.float32)
        _, gradients = mx.vjp(lambda H, x: self._activations(H, x, W, b), zeros, [cotangent])
        d_hidden, d_projected = gradients
        return d_hidden, d_projected

    def weight_gradient_steps(self, batch_size: int, hidden_size: int) -> int:
        return 1

    def weight_gradient(
        self,
        hidden: Sequence[mx.array],
        projected: Sequence[mx.array],
        d_A: Sequence[mx.array],
        total: Sequence[mx.array] | None = None,
    ) -> tuple[mx.array, mx.array]:
        O, M = d_A[0].shape[-1], hidden[0].shape[-1]
        zeros = [mx.zeros((O, *self.geometry.kernel_size, M)), mx.zeros((O,))]
        total = total or zeros
        for H, x, d in zip(hidden, projected, d_A, strict=True):
            of_step = partial(self._activations, H, x)
            _, gradients = mx.vjp(of_step, zeros, [d.astype(mx.float32)])
            total = [a + b for a, b in zip(total, gradients, strict=True)]
        d_weight, d_bias = total
        return d_weight, d_bias

    def memory_update(
        self, A: mx.array, C_before: mx.array, prepared: Prepared
    ) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        arrays = self._arrays(A, C_before, prepared)
        H, C, output = self._updated(*arrays)
        dtype = prepared.weight.dtype
        return H.astype(dtype), C, output.astype(dtype), A

    def restore(
        self, residuals: None, A: mx.array, C_before: mx.array, prepared: Prepared
    ) -> mx.array:
        return A

    def memory_gradient(
        self,
        d_H: mx.array,
        d_output: mx.array | None,
        d_C: mx.array | None,
        later: Sequence[mx.array] | None,
        step: Step,
        prepared: Prepared,
    ) -> tuple[mx.array, Sequence[mx.array]]:
        arrays = self._arrays(step.residuals, step.before[1], prepared)
        sums = later or [mx.zeros(array.shape) for array in arrays[1:]]
        d_C = sums[0] if d_C is None else sums[0] + d_C
        d_output = mx.zeros((len(d_H), d_H.shape[-1])) if d_output is None else d_output
        arrays = after(arrays, [d_H])  # mx.compile would share, and so keep, all that is between
        _, (d_A, d_C, *d_norm) = mx.vjp(self._updated, arrays, [d_H, d_C, d_output])
        handed = [d_C, *(a + b for a, b in zip(sums[1:], d_norm, strict=True))]
        return d_A.astype(prepared.weight.dtype), handed

    def first_gradients(self, handed: Sequence[mx.array]) -> tuple[mx.array, Sequence[mx.array]]:
        d_C, *d_norm = handed
        return d_C, d_norm

    def tanh_gradient(self, d_H: mx.array, d_output: mx.array | None, H: mx.array) -> mx.array:
        # A was not kept, but tanh' is 1 - tanh².
        if d_output is not None:
            d_H = d_H + mx.vjp(output, [mx.zeros(d_H.shape)], [d_output])[1][0]
        return (d_H * (1 - H.astype(mx.float32) ** 2)).astype(H.dtype)

    def output(self, H: mx.array) -> mx.array:
        return output(H)

    def stack(self, arrays: Sequence[mx.array]) -> mx.array:
        return mx.stack(list(arrays))

    def _arrays(self, A: mx.array, C: mx.array, prepared: Prepared) -> list[mx.array]:
        norm = (prepared.norm_gain, prepared.norm_bias) if self.update.norm else ()
        return [A.astype(mx.float32), C, *norm]

    def _updated(self, A: mx.array, C: mx.array, *norm: mx.array) -> tuple[mx.array, ...]:
        return updated(A, C, norm, self.update, self.geometry)

"""What the rivals of the LSTM family share."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx

from mlx_tlstm.checks import is_number, plain, require


class LSTMState(NamedTuple):
    """Hidden state, in the weights' type, and memory cell, float32.

    Each is ``[B, M]``, or ``[B, L, M]`` where there are layers.
    """

    hidden: mx.array
    cell: mx.array


def zero_state(shape: tuple[int, ...], dtype: mx.Dtype) -> LSTMState:
    """The zero state; ``dtype`` is that of the weights."""
    return LSTMState(mx.zeros(shape, dtype), mx.zeros(shape))


def normal(shape: tuple[int, ...], fan_in: int) -> mx.array:
    """Initial weights: normal with standard deviation 1 / sqrt(fan in)."""
    return mx.random.normal(shape) / math.sqrt(fan_in)


def gate_bias(hidden_size: int, fan_in: int, forget_bias: float) -> mx.array:
    """Initial bias ``[4M]`` of gates g, i, f, o, as this package's other layers have it.

    The candidate's (g) is uniform up to 1 / sqrt(fan in), the forget gate's is ``forget_bias``, the
    others are zero.
    """
    limit = 1 / math.sqrt(fan_in)
    candidate = mx.random.uniform(-limit, limit, (hidden_size,))
    zeros = mx.zeros((hidden_size,))
    return mx.concatenate([candidate, zeros, mx.full((hidden_size,), forget_bias), zeros])


def require_forget_bias(owner: str, forget_bias: object) -> float:
    """``forget_bias`` as a float; ``ValueError`` unless it is a number that float32 holds."""
    valid = is_number(forget_bias) and abs(plain(forget_bias)) <= mx.finfo(mx.float32).max
    require(valid, owner, "forget_bias", "a finite number", forget_bias)
    return float(plain(forget_bias))


def remember(activations: mx.array, cell: mx.array) -> tuple[mx.array, mx.array]:
    """The output gate and the next memory cell, both float32 ``[..., M]``.

    Args:
        activations: Of gates g, i, f, o, ``[..., 4M]``.
        cell: The memory cell before, ``[..., M]``.
    """
    g, i, f, o = mx.split(activations.astype(mx.float32), 4, axis=-1)
    return mx.sigmoid(o), mx.sigmoid(f) * cell + mx.sigmoid(i) * mx.tanh(g)


def by_layer(array: mx.array) -> list[mx.array]:
    """Layers ``[B, L, …]`` as L arrays ``[B, …]``."""
    # The gradient of an index is an array of all layers, for every layer; a split's is one.
    return [part.squeeze(1) for part in mx.split(array, array.shape[1], axis=1)]

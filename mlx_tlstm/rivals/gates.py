"""What rivals with gates, or with layers, share."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
from mlx import nn


class LSTMState(NamedTuple):
    """Hidden state, in the weights' type, and memory cell, float32.

    Each is ``[B, M]``, or ``[B, L, M]`` where there are layers.
    """

    hidden: mx.array
    cell: mx.array


class LayerWeights(nn.Module):
    """The weight and the bias of a layer: MLX cannot freeze arrays that stand in a list."""

    def __init__(self, weight: mx.array, bias: mx.array) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias


def zero_state(shape: tuple[int, ...], dtype: mx.Dtype) -> LSTMState:
    """The zero state; ``dtype`` is that of the weights."""
    return LSTMState(mx.zeros(shape, dtype), mx.zeros(shape))


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

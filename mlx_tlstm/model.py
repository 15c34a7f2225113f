"""A layer with a read-out: logits for every step."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_tlstm.checks import require, require_integer
from mlx_tlstm.layers.base import RecurrentLayer


class SequenceModel(nn.Module):
    """A recurrent layer and the linear read-out h W^y + b^y (Eq. 8, 23), before the softmax.

    Args:
        layer: A :class:`TLSTM`, :class:`TRNN` or :class:`StackedLSTM`.
        output_size: S, number of classes.

    Raises:
        ValueError: ``layer`` is no layer, or ``output_size`` is no positive integer.
    """

    def __init__(self, layer: RecurrentLayer, output_size: int) -> None:
        super().__init__()
        valid = isinstance(layer, RecurrentLayer)
        require(valid, "SequenceModel", "layer", "a TLSTM, TRNN or StackedLSTM", layer)
        require_integer("SequenceModel", "output_size", output_size)
        self.layer = layer
        self.readout = nn.Linear(layer.cell.hidden_size, output_size)

    def __call__(self, x: mx.array, state: Any = None) -> tuple[mx.array, Any]:
        """Logits ``[B, T, S]`` of inputs ``[B, T, R]``, and the state after them.

        ``logits[:, t]`` answers ``x[:, :t+1]``; see :meth:`RecurrentLayer.__call__`.
        """
        y, state = self.layer(x, state)
        return self.readout(y), state

"""What models, sessions, training and recordings need of a layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn

#: What to take for a layer, in errors.
LAYERS = "a TLSTM, TRNN, StackedLSTM or Recurrent"


class Trace(NamedTuple):
    """What each step of a sequence computed. Time is the second axis.

    There are T' = T + delay steps, of which the last ``delay`` flush the last outputs out.

    Attributes:
        outputs: ``[B, T, M]``, as the layer returns them.
        states: The layer's state, each array with a time axis: ``[B, T', …]`` after each step.
        residuals: What else the cell computed in each step, with the same axes: the gates and, with
            memory convolution, the kernels Q ``[B, T', *P, <K>]``; ``None`` for a tRNN and for a
            cell of the user's own.
    """

    outputs: mx.array
    states: Any
    residuals: Any


class Layer(nn.Module):
    """A layer over sequences ``x [B, T, R]``: this package's, or one around a cell of one's own.

    Attributes:
        cell: One time step.
    """

    cell: nn.Module

    @property
    def delay(self) -> int:
        """Steps between an input and its output."""
        return 0

    @property
    def causal(self) -> bool:
        """Whether no output depends on a later input."""
        return True

    @property
    def input_size(self) -> int | None:
        """R, width of an input; ``None`` if the cell does not say it."""

    @property
    def hidden_size(self) -> int:
        """M, width of an output."""

    @property
    def dtype(self) -> mx.Dtype:
        """Type of the weights."""

    def arguments(self) -> dict[str, Any]:
        """The arguments that rebuild it around its weights, fit for JSON.

        Others set starting weights only, or belong to the machine. A :class:`mlx_tlstm.Recurrent`
        gives those of :func:`mlx_tlstm.make_layer`, if that made it.
        """

    def initial_state(self, batch_size: int) -> Any:
        """The state before the first input of ``batch_size`` sequences."""

    def check_input(self, owner: str, x: Any, ndims: tuple[int, ...], shape: str) -> None:
        """Raise ``ValueError`` unless ``x`` has one of these ranks, and the layer's width."""

    def __call__(self, x: mx.array, state: Any = None) -> tuple[mx.array, Any]:
        """Outputs ``[B, T, M]``, where ``y[:, t]`` answers ``x[:, :t+1]``, and the state."""

    def stream(self, x: mx.array, state: Any = None) -> tuple[mx.array, Any]:
        """As a call, but with exactly one step for each input; the same where the delay is 0."""
        return self(x, state)

    def trace(self, x: mx.array, state: Any = None) -> Trace:
        """Every step's state, for inspection; see :class:`Trace`."""

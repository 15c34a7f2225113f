"""The IRNN: rectified linear units whose recurrent weights start as the identity."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
from mlx import nn

from mlx_tlstm.checks import require_integer


class IRNNState(NamedTuple):
    """State of an IRNN: the hidden state, ``[B, M]``."""

    hidden: mx.array


class IRNNCell(nn.Module):
    r"""One time step of an IRNN, for :class:`mlx_tlstm.Recurrent`.

    Quoc V. Le, Navdeep Jaitly and Geoffrey E. Hinton, 2015, "A Simple Way to Initialize Recurrent
    Networks of Rectified Linear Units". It is the plain recurrent network::

        h_t = max(0, W x_t + U h_{t-1} + b)

    What is new is how it starts: U as the identity, b as zeros, and W normal with deviation 0.001.
    Untrained, it keeps its state while no input comes, and adds up what comes.

    Args:
        input_size: R, width of an input.
        hidden_size: M, width of the state and of an output, which is the state.

    Parameters: ``input_weight [M, R]``, ``recurrent_weight [M, M]``, ``bias [M]``.

    Raises:
        ValueError: An argument is no positive integer; the message names it.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        owner = type(self).__name__
        self.input_size = R = require_integer(owner, "input_size", input_size)
        self.hidden_size = M = require_integer(owner, "hidden_size", hidden_size)
        self.input_weight = mx.random.normal((M, R), scale=0.001)
        self.recurrent_weight = mx.eye(M)
        self.bias = mx.zeros((M,))

    def initial_state(self, batch_size: int) -> IRNNState:
        """The zero state, in the weights' type."""
        return IRNNState(mx.zeros((batch_size, self.hidden_size), self.bias.dtype))

    def __call__(self, x: mx.array, state: IRNNState) -> tuple[mx.array, IRNNState]:
        """The output ``[B, M]`` for an input ``[B, R]``, and the next state."""
        projected = mx.addmm(self.bias, x.astype(self.bias.dtype), self.input_weight.T)
        hidden = nn.relu(mx.addmm(projected, state.hidden, self.recurrent_weight.T))
        return hidden, IRNNState(hidden)

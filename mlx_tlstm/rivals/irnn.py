"""The IRNN: rectified linear units whose recurrent weights start as the identity."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
from mlx import nn

from mlx_tlstm.rivals.base import RivalCell


class IRNNState(NamedTuple):
    """State of an IRNN: the hidden state, ``[B, M]``."""

    hidden: mx.array


class IRNNCell(RivalCell):
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
        ValueError: An argument is out of range; the message names it.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size)
        R, M = self.input_size, self.hidden_size
        self._require_countable(input_weight=(M, R), recurrent_weight=(M, M))
        self.input_weight = mx.random.normal((M, R), scale=0.001)
        self.recurrent_weight = mx.eye(M)
        self.bias = mx.zeros((M,))

    def initial_state(self, batch_size: int) -> IRNNState:
        """The zero state, in the weights' type."""
        return IRNNState(mx.zeros((batch_size, self.hidden_size), self.bias.dtype))

    def __call__(self, x: mx.array, state: IRNNState) -> tuple[mx.array, IRNNState]:
        """The output ``[B, M]`` for an input ``[B, R]``, and the next state."""
        projected = mx.addmm(self.bias, x.astype(self.bias.dtype), self.input_weight.T)
        # No addmm: MLX's vmap of one whose first argument alone is batched fails.
        hidden = nn.relu(projected + state.hidden @ self.recurrent_weight.T)
        return hidden, IRNNState(hidden)

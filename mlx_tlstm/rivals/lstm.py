"""The LSTM of Table 3."""

from __future__ import annotations

import math

import mlx.core as mx

from mlx_tlstm.layers.base import require_forget_bias
from mlx_tlstm.rivals.base import RivalCell
from mlx_tlstm.rivals.gates import LSTMState, remember, zero_state


class LSTMCell(RivalCell):
    r"""One time step of an LSTM of a single layer, for :class:`mlx_tlstm.Recurrent`.

    Martin Arjovsky, Amar Shah and Yoshua Bengio, 2016, "Unitary Evolution Recurrent Neural
    Networks", Section 5, ran it beside their own network. They write out no equations and cite Sepp
    Hochreiter and Jürgen Schmidhuber, 1997, "Long Short-Term Memory". It has a forget gate and no
    peepholes::

        g_t = tanh(W_g [x_t; h_{t-1}] + b_g)
        i_t = σ(W_i [x_t; h_{t-1}] + b_i)
        f_t = σ(W_f [x_t; h_{t-1}] + b_f)
        o_t = σ(W_o [x_t; h_{t-1}] + b_o)
        c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t
        h_t = o_t ⊙ tanh(c_t)

    With the same weights it is ``mlx.nn.LSTM``, where the gates' order is i, f, g, o.

    Starting values: the paper names none for the LSTM. They are those of the authors' code: every
    matrix of a gate, of the input or of the past, uniform up to sqrt(6 / (fan in + fan out)); the
    forget gate's bias one, the others zero. That code also has a matrix from c_t to the output
    gate, and learns the state before the first input. The paper mentions neither, and neither is
    here.

    Args:
        input_size: R, width of an input.
        hidden_size: M, width of the hidden state, which is the output, and of the memory cell.
        forget_bias: Starting bias of the forget gate; the authors' code has 1.

    Parameters: ``weight [4M, R + M]`` (input, own past) and ``bias [4M]`` of g, i, f, o.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    def __init__(self, input_size: int, hidden_size: int, forget_bias: float = 1.0) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size)
        R, M = self.input_size, self.hidden_size
        self.forget_bias = require_forget_bias(type(self).__name__, forget_bias)
        self._require_countable(weight=(4 * M, R + M))
        from_input, from_past = math.sqrt(6 / (R + M)), math.sqrt(6 / (2 * M))
        self.weight = mx.concatenate(
            [
                mx.random.uniform(-from_input, from_input, (4 * M, R)),
                mx.random.uniform(-from_past, from_past, (4 * M, M)),
            ],
            axis=1,
        )
        self.bias = mx.zeros((4 * M,))
        self.bias[2 * M : 3 * M] = self.forget_bias

    def initial_state(self, batch_size: int) -> LSTMState:
        """The zero state, each array ``[B, M]``."""
        return zero_state((batch_size, self.hidden_size), self.weight.dtype)

    def __call__(self, x: mx.array, state: LSTMState) -> tuple[mx.array, LSTMState]:
        """The output ``[B, M]`` for an input ``[B, R]``, and the next state."""
        dtype = self.weight.dtype
        rows = mx.concatenate([x.astype(dtype), state.hidden], axis=1)
        o, cell = remember(mx.addmm(self.bias, rows, self.weight.T), state.cell)
        hidden = (o * mx.tanh(cell)).astype(dtype)
        return hidden, LSTMState(hidden, cell)

"""The multiplicative LSTM: recurrent weights of its own for each input."""

from __future__ import annotations

import mlx.core as mx

from mlx_tlstm.layers.base import normal, require_forget_bias
from mlx_tlstm.rivals.base import RivalCell
from mlx_tlstm.rivals.gates import LSTMState, zero_state


class MultiplicativeLSTMCell(RivalCell):
    r"""One time step of a multiplicative LSTM (mLSTM), for :class:`mlx_tlstm.Recurrent`.

    Ben Krause, Liang Lu, Iain Murray and Steve Renals, 2017, "Multiplicative LSTM for sequence
    modelling" (arXiv 1609.07959; the sections on the LSTM and on the multiplicative LSTM)::

        m_t = (W_mx x_t) ⊙ (W_mh h_{t-1})
        ĥ_t = W_hx x_t + W_hm m_t
        i_t = σ(W_ix x_t + W_im m_t + b_i)
        f_t = σ(W_fx x_t + W_fm m_t + b_f)
        o_t = σ(W_ox x_t + W_om m_t + b_o)
        c_t = f_t ⊙ c_{t-1} + i_t ⊙ ĥ_t
        h_t = tanh(c_t ⊙ o_t + b_h)

    The output gate stands inside the tanh and the candidate ĥ has none, as in the paper's LSTM; m
    has the width of h, as in all its experiments. The paper's equations leave out the biases; they
    are where the authors' code has them. With zero biases the two are the same.

    Starting values: we know of none that the paper names. Weights are normal with deviation
    1 / sqrt(fan in), near those of the authors' code at its size (0.02 for 1900 units); biases are
    zero, but for the forget gate's.

    Args:
        input_size: R, width of an input.
        hidden_size: M, width of the hidden state, which is the output, and of the memory cell.
        forget_bias: Starting bias of the forget gate; the authors' code has 3.

    Parameters: ``input_weight [5M, R]`` for m, ĥ, i, f, o; ``hidden_weight [M, M]`` (W_mh);
    ``weight [4M, M]`` from m, for ĥ, i, f, o; ``bias [4M]`` of h, i, f, o.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    def __init__(self, input_size: int, hidden_size: int, forget_bias: float = 3.0) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size)
        R, M = self.input_size, self.hidden_size
        self.forget_bias = require_forget_bias(type(self).__name__, forget_bias)
        self._require_countable(input_weight=(5 * M, R), weight=(4 * M, M))
        self.input_weight = normal((5 * M, R), fan_in=R)
        self.hidden_weight = normal((M, M), fan_in=M)
        self.weight = normal((4 * M, M), fan_in=M)
        self.bias = mx.zeros((4 * M,))
        self.bias[2 * M : 3 * M] = self.forget_bias

    def initial_state(self, batch_size: int) -> LSTMState:
        """The zero state, each array ``[B, M]``."""
        return zero_state((batch_size, self.hidden_size), self.weight.dtype)

    def __call__(self, x: mx.array, state: LSTMState) -> tuple[mx.array, LSTMState]:
        """The output ``[B, M]`` for an input ``[B, R]``, and the next state."""
        M, dtype = self.hidden_size, self.weight.dtype
        to_factor, direct = mx.split(x.astype(dtype) @ self.input_weight.T, [M], axis=-1)
        m = to_factor * (state.hidden @ self.hidden_weight.T)
        activations = mx.addmm(direct, m, self.weight.T).astype(mx.float32)
        candidate, gates = mx.split(activations, [M], axis=-1)
        output_bias, gate_bias = mx.split(self.bias, [M])
        i, f, o = mx.split(mx.sigmoid(gates + gate_bias), 3, axis=-1)
        cell = f * state.cell + i * candidate
        hidden = mx.tanh(o * cell + output_bias).astype(dtype)
        return hidden, LSTMState(hidden, cell)

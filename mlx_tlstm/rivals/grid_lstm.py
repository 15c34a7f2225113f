"""The Grid LSTM of Table 2."""

from __future__ import annotations

import mlx.core as mx

from mlx_tlstm.layers.base import gate_bias, normal, require_forget_bias
from mlx_tlstm.rivals.base import RivalCell
from mlx_tlstm.rivals.gates import LSTMState, by_layer, remember, zero_state


class GridLSTMCell(RivalCell):
    r"""One time step of a two-dimensional Grid LSTM, for :class:`mlx_tlstm.Recurrent`.

    Nal Kalchbrenner, Ivo Danihelka and Alex Graves, 2015, "Grid Long Short-Term Memory". Each of L
    layers is a block (Section 3.1) of two LSTM transforms (Section 2), one along time and one along
    depth. Both read the two hidden vectors that come in; each has a memory m and weights of its
    own, which are the same in all layers (Section 3.5)::

        H = [h_time; h_depth]
        g_u = σ(W_u H + b_u)
        g_f = σ(W_f H + b_f)
        g_o = σ(W_o H + b_o)
        g_c = tanh(W_c H + b_c)
        m' = g_f ⊙ m + g_u ⊙ g_c
        h' = tanh(g_o ⊙ m')

    The output gate stands inside the tanh. Along time, h' and m' go to the same layer at the next
    step; along depth, to the next layer at the same step. Into the first layer come h_depth = I_h x
    and m_depth = I_m x, projections of the input; the output is h_depth behind the last layer. The
    paper's equations leave out the biases; with zero biases the two are the same. The parameter
    count that it prints for Wikipedia, 16.8M, would fit a read-out of m_depth too.

    Starting values: we know of none that the paper names for addition and memorization. They are
    those of this package's other layers: weights normal with deviation 1 / sqrt(fan in), the bias
    of g_c uniform up to as much, that of g_f as given, along time as along depth, the others zero.
    Training takes a one-hot input's fan in as 1.

    Args:
        input_size: R, width of an input.
        hidden_size: M, width of each vector and of an output.
        depth: L, layers.
        forget_bias: Starting bias of g_f.

    Parameters: ``input_weight [2M, R]`` (I_h, I_m); ``time_weight [8M, M]`` for h_time,
    ``depth_weight [8M, M]`` for h_depth and ``bias [8M]``, of g_c, g_u, g_f, g_o along time, then
    of the same along depth.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    has_own_start = False

    def __init__(
        self, input_size: int, hidden_size: int, depth: int, forget_bias: float = 1.0
    ) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size, depth=depth)
        R, M, L = self.input_size, self.hidden_size, self.depth
        self.forget_bias = require_forget_bias(type(self).__name__, forget_bias)
        self._require_countable(input_weight=(2 * M, R), time_weight=(8 * M, M), state=(L, M))
        self.input_weight = normal((2 * M, R), fan_in=R)
        self.time_weight = normal((8 * M, M), fan_in=2 * M)
        self.depth_weight = normal((8 * M, M), fan_in=2 * M)
        self.bias = mx.concatenate([gate_bias(4 * M, M, 2 * M, self.forget_bias) for _ in range(2)])

    def initial_state(self, batch_size: int) -> LSTMState:
        """The zero state, along time only; each array ``[B, L, M]``."""
        shape = (batch_size, self.depth, self.hidden_size)
        return zero_state(shape, self.input_weight.dtype)

    def __call__(self, x: mx.array, state: LSTMState) -> tuple[mx.array, LSTMState]:
        """The output ``[B, M]`` for an input ``[B, R]``, and the next state."""
        dtype = self.input_weight.dtype
        hidden, cell = mx.split(x.astype(dtype) @ self.input_weight.T, 2, axis=-1)
        cell = cell.astype(mx.float32)
        # The past of all layers is there already; what comes along depth has to be waited for.
        # No addmm: MLX's vmap of one whose first argument alone is batched fails.
        from_past = by_layer(state.hidden @ self.time_weight.T + self.bias)
        after = []
        for activations, past_cell in zip(from_past, by_layer(state.cell), strict=True):
            # Both transforms at once, [B, 2, …]: along time, along depth.
            both = activations + hidden @ self.depth_weight.T
            both = both.reshape(-1, 2, 4 * self.hidden_size)
            output_gates, cells = remember(both, mx.stack([past_cell, cell], axis=1))
            past, hidden = by_layer(mx.tanh(output_gates * cells).astype(dtype))
            past_cell, cell = by_layer(cells)
            after.append((past, past_cell))
        state = LSTMState(*(mx.stack(arrays, axis=1) for arrays in zip(*after, strict=True)))
        return hidden, state

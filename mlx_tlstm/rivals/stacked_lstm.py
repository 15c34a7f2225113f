"""The stacked LSTM of Table 2: a set of weights for each layer."""

from __future__ import annotations

import mlx.core as mx

from mlx_tlstm.layers.base import gate_bias, normal, require_forget_bias
from mlx_tlstm.rivals.base import RivalCell
from mlx_tlstm.rivals.gates import LayerWeights, LSTMState, by_layer, remember, zero_state


class UntiedLSTMCell(RivalCell):
    r"""One time step of a stacked LSTM with a set of weights for each layer.

    It is for :class:`mlx_tlstm.Recurrent`. Nal Kalchbrenner, Ivo Danihelka and Alex Graves, 2015,
    "Grid Long Short-Term Memory", Sections 4.1 and 4.2, trained it beside their own network. The
    equations are those of the tensorized LSTM's paper (Eq. 5 and 10-13); layer l = 1 … L reads the
    layer below and its own past::

        h_{t,0} = W_x x_t + b_x
        g = tanh(W_{g,l} [h_{t,l-1}; h_{t-1,l}] + b_{g,l})
        i = σ(W_{i,l} [h_{t,l-1}; h_{t-1,l}] + b_{i,l})
        f = σ(W_{f,l} [h_{t,l-1}; h_{t-1,l}] + b_{f,l})
        o = σ(W_{o,l} [h_{t,l-1}; h_{t-1,l}] + b_{o,l})
        c_{t,l} = f ⊙ c_{t-1,l} + i ⊙ g
        h_{t,l} = o ⊙ tanh(c_{t,l})

    The output is h_{t,L}. With equal weights in all layers it is :class:`mlx_tlstm.StackedLSTM`.

    Starting values: we know of none that the paper names for these tasks. They are those of
    :class:`mlx_tlstm.StackedLSTM`: weights normal with deviation 1 / sqrt(fan in), the candidate's
    bias (g) uniform up to as much, the forget gate's as given, the others zero. Training takes a
    one-hot input's fan in as 1, as in all this package's own layers.

    Args:
        input_size: R, width of an input.
        hidden_size: M, width of each layer and of an output.
        depth: L, layers.
        forget_bias: Starting bias of the forget gates.

    Parameters: ``input_weight [M, R]`` and ``input_bias [M]``; of each of ``layers``, ``weight
    [4M, 2M]`` (layer below, own past) and ``bias [4M]`` of g, i, f, o.

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
        self._require_countable(input_weight=(M, R), weight=(4 * M, 2 * M))
        self.input_weight = normal((M, R), fan_in=R)
        self.input_bias = mx.zeros((M,))
        # One array a layer: the gradient of a slice would be an array of all layers.
        weights = [normal((4 * M, 2 * M), fan_in=2 * M) for _ in range(L)]
        biases = [gate_bias(4 * M, M, 2 * M, self.forget_bias) for _ in range(L)]
        self.layers = list(map(LayerWeights, weights, biases))

    def initial_state(self, batch_size: int) -> LSTMState:
        """The zero state, each array ``[B, L, M]``."""
        shape = (batch_size, self.depth, self.hidden_size)
        return zero_state(shape, self.input_weight.dtype)

    def __call__(self, x: mx.array, state: LSTMState) -> tuple[mx.array, LSTMState]:
        """The output ``[B, M]`` for an input ``[B, R]``, and the next state."""
        dtype = self.input_weight.dtype
        below = mx.addmm(self.input_bias, x.astype(dtype), self.input_weight.T)
        after = []
        before = zip(by_layer(state.hidden), by_layer(state.cell), strict=True)
        for (past, cell), layer in zip(before, self.layers, strict=True):
            rows = mx.concatenate([below, past], axis=1)
            o, cell = remember(mx.addmm(layer.bias, rows, layer.weight.T), cell)
            below = (o * mx.tanh(cell)).astype(dtype)
            after.append((below, cell))
        return below, LSTMState(*(mx.stack(arrays, axis=1) for arrays in zip(*after, strict=True)))

"""The recurrent highway network: several highway layers between one time step and the next."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlx_tlstm.rivals.base import RivalCell
from mlx_tlstm.rivals.gates import LayerWeights

#: Where the transform gates' biases start on Wikipedia; it was -2 on Penn Treebank.
TRANSFORM_BIAS = -4.0
#: All other parameters start uniform up to this.
UNIFORM_LIMIT = 0.04


class RecurrentHighwayState(NamedTuple):
    """State of a recurrent highway network: what its last layer gave, ``[B, M]``."""

    hidden: mx.array


class RecurrentHighwayCell(RivalCell):
    r"""One time step of a recurrent highway network (RHN), for :class:`mlx_tlstm.Recurrent`.

    Julian Georg Zilly, Rupesh Kumar Srivastava, Jan Koutník and Jürgen Schmidhuber, 2017,
    "Recurrent Highway Networks", Section 4. With s_0 the state before the step, its highway layers
    l = 1 … L compute::

        h_l = tanh(W_H x [l = 1] + R_{H,l} s_{l-1} + b_{H,l})
        t_l = σ(W_T x [l = 1] + R_{T,l} s_{l-1} + b_{T,l})
        s_l = h_l ⊙ t_l + s_{l-1} ⊙ (1 - t_l)

    The input x enters the first layer only; s_L is the output and the state after the step. The
    carry gate is 1 - t_l, as in the paper's language models. Their variational dropout is no part
    of the cell.

    Starting values are those of the authors' code for enwik8: transform gates' biases -4, so that
    the state is carried at first, all other parameters uniform between -0.04 and 0.04.

    Args:
        input_size: R, width of an input.
        hidden_size: M, width of the state and of an output.
        depth: L, the recurrence depth: highway layers in a time step.

    Parameters: ``input_weight [2M, R]``; of each of ``layers``, ``weight [2M, M]`` and ``bias
    [2M]``. The rows are those of h, then of t.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    def __init__(self, input_size: int, hidden_size: int, depth: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size, depth=depth)
        R, M, L = self.input_size, self.hidden_size, self.depth
        self._require_countable(input_weight=(2 * M, R), weight=(2 * M, M))

        def uniform(*shape: int) -> mx.array:
            return mx.random.uniform(-UNIFORM_LIMIT, UNIFORM_LIMIT, shape)

        self.input_weight = uniform(2 * M, R)
        # One array a layer: the gradient of a slice would be an array of all layers.
        weights = [uniform(2 * M, M) for _ in range(L)]
        carry = mx.full((M,), TRANSFORM_BIAS)
        self.layers = [LayerWeights(w, mx.concatenate([uniform(M), carry])) for w in weights]

    def initial_state(self, batch_size: int) -> RecurrentHighwayState:
        """The zero state, in the weights' type."""
        shape = (batch_size, self.hidden_size)
        return RecurrentHighwayState(mx.zeros(shape, self.input_weight.dtype))

    def __call__(
        self, x: mx.array, state: RecurrentHighwayState
    ) -> tuple[mx.array, RecurrentHighwayState]:
        """The output ``[B, M]`` for an input ``[B, R]``, and the next state."""
        dtype = self.input_weight.dtype
        projected = x.astype(dtype) @ self.input_weight.T
        # In half precision 1 - t would lose most of a small t.
        s = state.hidden.astype(mx.float32)
        for number, layer in enumerate(self.layers):
            offset = layer.bias if number else layer.bias + projected
            # No addmm: MLX's vmap of one whose first argument alone is batched fails.
            activations = (offset + s.astype(dtype) @ layer.weight.T).astype(mx.float32)
            h, t = mx.split(activations, 2, axis=-1)
            h, t = mx.tanh(h), mx.sigmoid(t)
            s = h * t + s * (1 - t)
        hidden = s.astype(dtype)
        return hidden, RecurrentHighwayState(hidden)

"""The dilated GRU: stacked layers whose recurrent connections reach back 1, 2, 4, … steps."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
from mlx import nn

from mlx_tlstm.rivals.base import RivalCell

#: The state holds 2^depth - 1 arrays.
MAX_DEPTH = 16


class DilatedGRUState(NamedTuple):
    """State of a dilated GRU: of each layer l the last 2^l hidden states, oldest first.

    Each is an array ``[B, M]`` of its own, so that a step moves none of them: a ring in one array
    would be copied at every step, and kept for the gradient at every step.
    """

    hidden: tuple[tuple[mx.array, ...], ...]


class DilatedGRULayer(nn.Module):
    """A layer of a :class:`DilatedGRUCell`: one step of a GRU."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        N, M = input_size, hidden_size
        self.gate_weight = _glorot(2 * M, N + M)
        self.gate_bias = mx.ones((2 * M,))
        self.candidate_weight = _glorot(M, N + M)
        self.candidate_bias = mx.zeros((M,))

    def __call__(self, x: mx.array, past: mx.array) -> mx.array:
        """The hidden state after an input ``[B, N]`` and the hidden state ``past [B, M]``."""
        both = mx.concatenate([x, past], axis=-1)
        gates = mx.sigmoid(mx.addmm(self.gate_bias, both, self.gate_weight.T))
        r, z = mx.split(gates, 2, axis=-1)
        both = mx.concatenate([x, r * past], axis=-1)
        candidate = mx.tanh(mx.addmm(self.candidate_bias, both, self.candidate_weight.T))
        return z * past + (1 - z) * candidate


class DilatedGRUCell(RivalCell):
    r"""One time step of a dilated GRU, for :class:`mlx_tlstm.Recurrent`.

    Shiyu Chang and others, 2017, "Dilated Recurrent Neural Networks", Section 2. Each layer, l = 0
    … L - 1, takes the output of the layer below (the first takes the input), and its own hidden
    state of 2^l steps before::

        h_t^l = GRU(h_t^{l-1}, h_{t - 2^l}^l)

    The output is the last layer's hidden state. The GRU is that of Kyunghyun Cho and others, 2014,
    "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
    with biases, as TensorFlow's ``GRUCell`` in the authors' code (y the input, h the past)::

        r = σ(W_r [y; h] + b_r),  z = σ(W_z [y; h] + b_z)
        h̃ = tanh(W [y; r ⊙ h] + b)
        h' = z ⊙ h + (1 - z) ⊙ h̃

    On MNIST pixel by pixel the paper has 9 layers (dilations 1 to 256). Its code runs the
    2^l interleaved sequences of a layer side by side; here one step follows the other, with the
    same values.

    Starting values are those of the authors' code, which are TensorFlow's: weights uniform up to
    sqrt(6 / (fan in + fan out)), each of the two matrices as a whole, biases of the gates one,
    the candidate's zero.

    Args:
        input_size: R, width of an input.
        hidden_size: M, width of each layer and of an output.
        depth: L, layers; 16 or fewer, as the state holds 2^L - 1 hidden states.

    Parameters: of each of ``layers``, with N the width of its inputs: ``gate_weight [2M, N + M]``
    and ``gate_bias [2M]`` of r, z; ``candidate_weight [M, N + M]`` and ``candidate_bias [M]``.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    max_depth = MAX_DEPTH

    def __init__(self, input_size: int, hidden_size: int, depth: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size, depth=depth)
        R, M, L = self.input_size, self.hidden_size, self.depth
        below = max(R, M)
        self._require_countable(gate_weight=(2 * M, below + M))
        self.layers = [DilatedGRULayer(M if layer else R, M) for layer in range(L)]

    def initial_state(self, batch_size: int) -> DilatedGRUState:
        """The zero state, in the weights' type."""
        shape, dtype = (batch_size, self.hidden_size), self.layers[0].gate_weight.dtype
        # One array for all: in a graph mx.compile would merge them, which takes minutes for many.
        zeros = mx.zeros(shape, dtype)
        return DilatedGRUState(tuple((zeros,) * 2**layer for layer in range(self.depth)))

    def __call__(self, x: mx.array, state: DilatedGRUState) -> tuple[mx.array, DilatedGRUState]:
        """The output ``[B, M]`` for an input ``[B, R]``, and the next state."""
        output, after = x.astype(self.layers[0].gate_weight.dtype), []
        for layer, (oldest, *later) in zip(self.layers, state.hidden, strict=True):
            output = layer(output, oldest)
            after.append((*later, output))
        return output, DilatedGRUState(tuple(after))


def _glorot(rows: int, columns: int) -> mx.array:
    limit = math.sqrt(6 / (rows + columns))
    return mx.random.uniform(-limit, limit, (rows, columns))

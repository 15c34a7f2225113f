"""The paper's baseline: a stacked LSTM with one set of weights for all layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_tlstm import ops
from mlx_tlstm.checks import require_integer
from mlx_tlstm.layers.base import (
    RecurrentCell,
    RecurrentLayer,
    gate_bias,
    normal,
    require_countable,
    require_forget_bias,
)
from mlx_tlstm.transition import PlainTransition, State, Step, last_location


class StackedLSTMState(NamedTuple):
    """State of a stacked LSTM: hidden state and memory cell, each ``[B, L, M]``."""

    hidden: mx.array
    cell: mx.array


class PreparedStack(NamedTuple):
    """Arrays that every step uses."""

    weight: mx.array
    from_below: mx.array
    from_past: mx.array
    bias: mx.array


@dataclasses.dataclass(frozen=True)
class StackedLSTMTransition(PlainTransition):
    """One step through all layers; parameters: weight ``[4M, 2, M]``, bias ``[4M]``."""

    depth: int
    update: ops.MemoryUpdate

    def prepare(self, parameters: Sequence[mx.array]) -> PreparedStack:
        weight, bias = parameters
        return PreparedStack(
            weight, ops.transposed(weight[:, 0]), ops.transposed(weight[:, 1]), bias
        )

    def forward(
        self, prepared: PreparedStack, projected: mx.array, state: State
    ) -> tuple[State, Any, mx.array]:
        _, from_below, from_past, bias = prepared
        H, C = state
        # Own past of all layers in one product; the layer below has to be waited for.
        A_past = H @ from_past + bias
        below, after, residuals = projected, [], []
        for layer in range(self.depth):
            A = A_past[:, layer] + below @ from_below  # Eq. 10
            h, c, kept = ops.memory_update(A, C[:, layer], None, None, self.update)
            below = h.astype(bias.dtype)
            after.append((below, c))
            residuals.append(kept)
        state = tuple(mx.stack(arrays, axis=1) for arrays in zip(*after, strict=True))
        return state, residuals, self.output(state)

    def step_backward(
        self, prepared: PreparedStack, step: Step, d_after: State
    ) -> tuple[mx.array, State, mx.array, Sequence[mx.array]]:
        weight = prepared.weight
        d_H, d_C = d_after
        C = step.before[1]
        d_below = mx.zeros_like(d_H[:, 0])
        d_As, d_Cs = [], []
        for layer in range(self.depth - 1, -1, -1):
            d_A, d_c, _ = ops.memory_update_backward(
                d_H[:, layer] + d_below,
                d_C[:, layer],
                C[:, layer],
                None,
                step.residuals[layer],
                self.update,
            )
            d_A = d_A.astype(weight.dtype)
            d_below = (d_A @ weight[:, 0]).astype(mx.float32)
            d_As.append(d_A)
            d_Cs.append(d_c)
        d_A = mx.stack(d_As[::-1], axis=1)
        d_H = (d_A @ weight[:, 1]).astype(mx.float32)
        return d_below, (d_H, mx.stack(d_Cs[::-1], axis=1)), d_A, ()

    def weight_gradient_elements(self, step: Step) -> int:
        return step.projected.shape[0] * self.depth * 2 * self.update.hidden_size

    def steps_weight_gradients(
        self, steps: Sequence[Step], d_activations: Sequence[mx.array]
    ) -> Sequence[mx.array]:
        d_A = mx.concatenate(list(d_activations))
        below = [
            mx.concatenate([step.projected[:, None], step.after[0][:, :-1]], axis=1)
            for step in steps
        ]
        past = [step.before[0] for step in steps]
        rows = mx.stack([mx.concatenate(below), mx.concatenate(past)], axis=2)
        d_A = d_A.reshape(-1, d_A.shape[-1])
        d_weight = d_A.T @ rows.reshape(d_A.shape[0], -1)
        return d_weight.reshape(d_A.shape[-1], 2, -1), mx.sum(d_A, axis=0)

    def output(self, state: State) -> mx.array:
        return last_location(state[0])

    def add_output_gradient(self, d_state: State, d_output: mx.array) -> State:
        d_H, d_C = d_state
        return d_H.at[:, -1].add(d_output), d_C


class StackedLSTMCell(RecurrentCell):
    """One time step of a stacked LSTM whose layers share their weights (Eq. 10-13 a layer).

    Args:
        input_size: R, width of an input; the first layer reads its projection to M channels.
        hidden_size: M, hidden size of each layer.
        depth: L, number of layers.
        forget_bias: Starting bias of the forget gate.
        recompute: See :class:`TLSTM`.

    Parameters: ``weight [4M, 2, M]`` (layer below, own past), ``bias [4M]``, gates in the order
    g, i, f, o; ``input_projection`` (``nn.Linear``).

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    state_type = StackedLSTMState

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        depth: int,
        forget_bias: float = 1.0,
        recompute: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, recompute)
        owner = type(self).__name__
        depth = require_integer(owner, "depth", depth)
        forget_bias = require_forget_bias(owner, forget_bias)
        M = self.hidden_size
        self.depth = depth
        self.delay = 0
        self.transition = StackedLSTMTransition(depth, ops.MemoryUpdate(M, None, None))
        require_countable(owner, "weight", (4 * M, 2, M))
        require_countable(owner, "state", self.state_shape)
        self.weight = normal((4 * M, 2, M), fan_in=2 * M)
        self.bias = gate_bias(4 * M, M, 2 * M, forget_bias)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.depth, self.hidden_size)

    def _extra_repr(self) -> str:
        return f"input_size={self.input_size}, hidden_size={self.hidden_size}, depth={self.depth}"


class StackedLSTM(RecurrentLayer):
    """A stacked LSTM over sequences; arguments as in :class:`StackedLSTMCell`.

    Its delay is 0, so that :meth:`stream` is the same as a call.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        depth: int,
        forget_bias: float = 1.0,
        recompute: bool = False,
    ) -> None:
        super().__init__(StackedLSTMCell(input_size, hidden_size, depth, forget_bias, recompute))

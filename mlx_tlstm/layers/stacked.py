"""The paper's baseline: a stacked LSTM with one set of weights for all layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.layers.base import (
    RecurrentCell,
    RecurrentLayer,
    gate_bias,
    normal,
    require_countable,
    require_depth,
    require_forget_bias,
)
from mlx_tlstm.ops import PlainBackend
from mlx_tlstm.ops.convolution import added, steps_at_once
from mlx_tlstm.ops.cpu import transposed
from mlx_tlstm.ops.memory_update import added_at_the_end
from mlx_tlstm.recurrence.contract import MemoryUpdate, Prepared, State, Step


class StackedLSTMState(NamedTuple):
    """State of a stacked LSTM: hidden state and memory cell, each ``[B, L, M]``."""

    hidden: mx.array
    cell: mx.array


class PreparedStack(NamedTuple):
    """Arrays that every step uses: the weight's halves ``[4M, M]`` and their transposes.

    MLX's products copy a half that lies in the whole weight, each time.

    Attributes:
        shared: Weight and bias.
        below: The half that multiplies the hidden state of the layer below.
        past: The half that multiplies a layer's own of the step before.
        from_below, from_past: Their transposes, ``[M, 4M]``.
    """

    shared: Prepared
    below: mx.array
    past: mx.array
    from_below: mx.array
    from_past: mx.array


@dataclasses.dataclass(frozen=True)
class StackedLSTMTransition:
    """One step through all layers; parameters: weight ``[4M, 2, M]``, bias ``[4M]``."""

    depth: int
    hidden_size: int

    #: A layer is a memory cell without tensor axes.
    backend: ClassVar[PlainBackend] = PlainBackend(Geometry((), ()), MemoryUpdate(False, None))

    def prepare(self, parameters: Sequence[mx.array]) -> PreparedStack:
        weight, bias = parameters
        halves = weight.swapaxes(0, 1).reshape(-1, self.hidden_size)
        below, past = halves[: len(weight)], halves[len(weight) :]
        shared = Prepared(weight, bias)
        return PreparedStack(shared, below, past, transposed(below), transposed(past))

    def forward(
        self, prepared: PreparedStack, projected: mx.array, state: State
    ) -> tuple[State, Any, mx.array]:
        shared, _, _, from_below, from_past = prepared
        H, C = state
        # Own past of all layers in one product; the layer below has to be waited for.
        A_past = H @ from_past + shared.bias
        below, after, residuals = projected, [], []
        for layer in range(self.depth):
            A = A_past[:, layer] + below @ from_below  # Eq. 10
            below, c, _, kept = self.backend.memory_update(A, C[:, layer], shared)
            after.append((below, c))
            residuals.append(kept)
        state = tuple(mx.stack(arrays, axis=1) for arrays in zip(*after, strict=True))
        return state, residuals, self.backend.output(state[0])

    def reduce(self, residuals: Any) -> None:
        return None

    def restore(self, prepared: PreparedStack, step: Step) -> Any:
        return self.forward(prepared, step.projected, step.before)[1]

    def backward(
        self,
        prepared: PreparedStack,
        step: Step,
        handed: State | None,
        d_output: mx.array | None,
        d_after: State | None,
    ) -> tuple[mx.array, State, mx.array]:
        d_H, d_C = handed or [mx.zeros(array.shape) for array in step.after]
        if d_after is not None:
            d_H, d_C = d_H + d_after[0], d_C + d_after[1]
        if d_output is not None:
            d_H = added_at_the_end(d_H, d_output, 1)
        d_below = mx.zeros_like(d_H[:, 0])
        d_As, d_Cs = [], []
        for layer in range(self.depth - 1, -1, -1):
            before = (step.before[0], step.before[1][:, layer])
            part = step._replace(before=before, residuals=step.residuals[layer])
            d_h = d_H[:, layer] + d_below
            d_A, (d_c, _) = self.backend.memory_gradient(
                d_h, None, d_C[:, layer], None, part, prepared.shared
            )
            d_below = (d_A @ prepared.below).astype(mx.float32)
            d_As.append(d_A)
            d_Cs.append(d_c)
        d_A = mx.stack(d_As[::-1], axis=1)
        d_H = (d_A @ prepared.past).astype(mx.float32)
        return d_below, (d_H, mx.stack(d_Cs[::-1], axis=1)), d_A

    def weight_gradient_steps(self, batch_size: int) -> int:
        return steps_at_once(batch_size * self.depth * 2 * self.hidden_size)

    def weight_gradients(
        self,
        steps: Sequence[Step],
        d_activations: Sequence[mx.array],
        total: Sequence[mx.array] | None,
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
        return added(total, (d_weight.reshape(d_A.shape[-1], 2, -1), mx.sum(d_A, axis=0)))

    def finish(self, handed: State) -> tuple[State, Sequence[mx.array]]:
        return handed, ()


class StackedLSTMCell(RecurrentCell):
    """One time step of a stacked LSTM; arguments and errors as :class:`StackedLSTM` lists them."""

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
        depth = require_depth(owner, depth)
        forget_bias = require_forget_bias(owner, forget_bias)
        M = self.hidden_size
        self.depth = depth
        self.delay = 0
        self.transition = StackedLSTMTransition(depth, M)
        require_countable(owner, "weight", (4 * M, 2, M))
        require_countable(owner, "state", self.state_shape)
        self.weight = normal((4 * M, 2, M), fan_in=2 * M)
        self.bias = gate_bias(4 * M, M, 2 * M, forget_bias)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.depth, self.hidden_size)

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"depth": self.depth}


class StackedLSTM(RecurrentLayer):
    """A stacked LSTM whose layers share their weights (Eq. 10-13 a layer), over sequences.

    From ``x [B, T, R]`` to outputs ``y [B, T, M]`` of the last layer. Its delay is 0, so that
    :meth:`stream` is the same as a call. ``layer.cell`` is one time step.

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

    cell_type = StackedLSTMCell

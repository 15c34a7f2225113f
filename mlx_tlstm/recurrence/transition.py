"""One time step of a cell, forward and backward.

:class:`Transition` is what the loop over time (:mod:`mlx_tlstm.recurrence.loop`) needs of a cell.
:class:`TLSTMTransition` and :class:`TRNNTransition` are the steps of the tLSTM and the tRNN; they
leave the computation to a backend (:mod:`mlx_tlstm.recurrence.contract`), so that each step is
written once for all of them. The stacked LSTM has a transition of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_map

from mlx_tlstm.recurrence.contract import Backend, Prepared, State, Step


class Transition(Protocol):
    """One step of a recurrent cell, forward and backward; pure functions of their arguments.

    A cell's parameters come as one list of arrays in two parts. First those whose gradient is
    formed for many steps at once, by :meth:`weight_gradients`; then those whose gradient is summed
    up step by step, and returned by :meth:`finish`.

    The backward pass goes from the last step to the first. What a step hands to the one before is
    the transition's own affair: the gradient of the state between the two, or something from which
    that can be computed.
    """

    #: What computes it, the output in a state, and the stack of all outputs.
    backend: Backend

    def prepare(self, parameters: Sequence[mx.array]) -> Any:
        """What every step of a sequence uses, made from the parameters once."""

    def forward(
        self, prepared: Any, projected: mx.array, state: State
    ) -> tuple[State, Any, mx.array]:
        """The next state, the residuals, and the output ``[B, M]`` in the next state."""

    def reduce(self, residuals: Any) -> Any:
        """The part of the residuals that is kept where the rest is computed anew."""

    def restore(self, prepared: Any, step: Step) -> Any:
        """All residuals of a step that holds what :meth:`reduce` left."""

    def backward(
        self,
        prepared: Any,
        step: Step,
        handed: Any | None,
        d_output: mx.array | None,
        d_after: State | None,
    ) -> tuple[mx.array, Any, mx.array]:
        """One step of the backward pass.

        Args:
            prepared: From :meth:`prepare`.
            step: The step.
            handed: What the step after this one handed on; ``None`` for the last one.
            d_output: Gradient of the output after the step ``[B, M]`` float32, if it has one.
            d_after: Gradient that the state after the step has besides, float32, if it has one.

        Returns:
            Gradients of projected ``[B, M]`` and of the activations, between them what to hand to
            the step before.
        """

    def weight_gradient_steps(self, batch_size: int) -> int:
        """The number of steps that :meth:`weight_gradients` takes at a time."""

    def weight_gradients(
        self,
        steps: Sequence[Step],
        d_activations: Sequence[mx.array],
        total: Sequence[mx.array] | None,
    ) -> Sequence[mx.array]:
        """Gradients of the leading parameters, summed over ``steps`` and added to ``total``."""

    def finish(self, handed: Any) -> tuple[State, Sequence[mx.array]]:
        """Gradients of the state before the first step and of the remaining parameters, float32."""

    def corner(self, prepared: Any, steps: int) -> tuple[Transition, Any]:
        """The same step on what the output after ``steps`` more steps depends on, and its arrays.

        The transition itself where that is all. This method and the next two are asked of cells
        whose outputs come later than their inputs.
        """

    def crop(self, state: State) -> State:
        """What this transition takes of a larger one's state."""

    def widen(self, handed: Any) -> Any:
        """What a smaller transition's :meth:`backward` handed on, for this one's."""


@dataclasses.dataclass(frozen=True)
class TensorTransition:
    """What the tLSTM and the tRNN share; parameters: weight, bias, …

    Args:
        backend: What computes it.
        hidden_size: M.
    """

    backend: Backend
    hidden_size: int

    def on(self, backend: Backend) -> TensorTransition:
        """The same step on another backend."""
        return dataclasses.replace(self, backend=backend)

    def prepare(self, parameters: Sequence[mx.array]) -> Prepared:
        return self.backend.prepare(parameters)

    def weight_gradient_steps(self, batch_size: int) -> int:
        return self.backend.weight_gradient_steps(batch_size, self.hidden_size)

    def weight_gradients(
        self,
        steps: Sequence[Step],
        d_activations: Sequence[mx.array],
        total: Sequence[mx.array] | None,
    ) -> Sequence[mx.array]:
        hidden, projected = [step.before[0] for step in steps], [step.projected for step in steps]
        return self.backend.weight_gradient(hidden, projected, d_activations, total)

    def corner(self, prepared: Prepared, steps: int) -> tuple[TensorTransition, Prepared]:
        backend = self.backend
        geometry = backend.geometry.corner(steps)
        shrinks = backend.shrinks and (backend.update is None or backend.update.is_local)
        if not shrinks or geometry == backend.geometry:
            return self, prepared
        gain, bias = (
            None if array is None else _last_locations(array, geometry.tensor_size)
            for array in (prepared.norm_gain, prepared.norm_bias)
        )
        smaller = self.on(dataclasses.replace(backend, geometry=geometry))
        return smaller, prepared._replace(norm_gain=gain, norm_bias=bias)

    def crop(self, state: State) -> State:
        return tuple(_last_locations(array, self.backend.geometry.tensor_size) for array in state)

    def widen(self, handed: Any) -> Any:
        # Nothing depends on the locations before the corner: their gradient is zero.
        P = self.backend.geometry.tensor_size

        def widened(array: mx.array) -> mx.array:
            missing = (n - m for n, m in zip(P, array.shape[1:-1], strict=True))
            return mx.pad(array, [(0, 0), *((n, 0) for n in missing), (0, 0)])

        return tree_map(widened, handed)


def _last_locations(array: mx.array, tensor_size: Sequence[int]) -> mx.array:
    """The last locations of each axis of an array ``[…, *P, M]``."""
    return array[(..., *(slice(-n, None) for n in tensor_size), slice(None))]


class TLSTMTransition(TensorTransition):
    """One step of a tLSTM; parameters: weight, bias and, with a norm, its gain and bias."""

    def forward(
        self, prepared: Prepared, projected: mx.array, state: State
    ) -> tuple[State, Any, mx.array]:
        H, C = state
        A = self.backend.convolution(H, projected, prepared)
        H, C, output, residuals = self.backend.memory_update(A, C, prepared)
        return (H, C), residuals, output

    def reduce(self, residuals: Any) -> Any:
        return self.backend.reduce(residuals)

    def restore(self, prepared: Prepared, step: Step) -> Any:
        H, C = step.before
        A = self.backend.convolution(H, step.projected, prepared)
        return self.backend.restore(step.residuals, A, C, prepared)

    def backward(
        self,
        prepared: Prepared,
        step: Step,
        handed: tuple[mx.array, Any] | None,
        d_output: mx.array | None,
        d_after: State | None,
    ) -> tuple[mx.array, tuple[mx.array, Any], mx.array]:
        d_H, later = handed if handed is not None else (mx.zeros(step.after[0].shape), None)
        d_C = None
        if d_after is not None:
            d_H, d_C = d_H + d_after[0], d_after[1]
        d_A, memory = self.backend.memory_gradient(d_H, d_output, d_C, later, step, prepared)
        d_H, d_projected = self.backend.convolution_gradient(d_A, prepared)
        return d_projected, (d_H, memory), d_A

    def finish(self, handed: tuple[mx.array, Any]) -> tuple[State, Sequence[mx.array]]:
        d_H, memory = handed
        d_C, d_norm = self.backend.first_gradients(memory)
        return (d_H, d_C), d_norm


class TRNNTransition(TensorTransition):
    """One step of a tRNN, whose state is all that its gradient needs; parameters: weight, bias."""

    def forward(
        self, prepared: Prepared, projected: mx.array, state: State
    ) -> tuple[State, None, mx.array]:
        H = self.backend.convolution(state[0], projected, prepared, tanh=True)
        return (H,), None, self.backend.output(H)

    def reduce(self, residuals: None) -> None:
        return None

    def restore(self, prepared: Prepared, step: Step) -> None:
        return None

    def backward(
        self,
        prepared: Prepared,
        step: Step,
        handed: mx.array | None,
        d_output: mx.array | None,
        d_after: State | None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        (H,) = step.after
        d_H = handed if handed is not None else mx.zeros(H.shape)
        if d_after is not None:
            d_H = d_H + d_after[0]
        d_A = self.backend.tanh_gradient(d_H, d_output, H)
        d_H, d_projected = self.backend.convolution_gradient(d_A, prepared)
        return d_projected, d_H, d_A

    def finish(self, handed: mx.array) -> tuple[State, Sequence[mx.array]]:
        return (handed,), ()

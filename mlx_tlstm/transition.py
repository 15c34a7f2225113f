"""One step of a recurrent cell, forward and backward: what the time loop asks of it."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

#: A cell's state: one array or two, batch first.
State = tuple[mx.array, ...]


class Step(NamedTuple):
    """One step of the forward pass.

    Attributes:
        projected: The input of the step, ``[B, M]``.
        before: State before the step.
        after: State after it.
        residuals: What else the backward pass needs.
    """

    projected: mx.array
    before: State
    after: State
    residuals: Any


class Transition(Protocol):
    """One step of a recurrent cell, forward and backward; pure functions of their arguments.

    ``parameters`` is the list of arrays that :meth:`weight_gradients` and :meth:`finish` together
    answer, in this order: the weights whose gradient is formed from many steps at once, then those
    whose gradient the steps of the backward pass sum up.

    In the backward pass each step hands something to the step before it, whose form is the
    transition's own: the gradient of the state between them, or what that gradient is made from.
    """

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

    def weight_gradient_steps(self, step: Step) -> int:
        """The number of steps like ``step`` that :meth:`weight_gradients` takes at a time."""

    def weight_gradients(
        self,
        steps: Sequence[Step],
        d_activations: Sequence[mx.array],
        total: Sequence[mx.array] | None,
    ) -> Sequence[mx.array]:
        """Gradients of the leading parameters, summed over ``steps`` and added to ``total``."""

    def finish(self, handed: Any) -> tuple[State, Sequence[mx.array]]:
        """Gradients of the state before the first step and of the remaining parameters, float32."""

    def output(self, state: State) -> mx.array:
        """The output ``[B, M]`` in a state."""

    def stack(self, arrays: Sequence[mx.array]) -> mx.array:
        """``mx.stack`` of arrays of all steps."""


class GradientSoFar(NamedTuple):
    """What a :class:`PlainTransition` hands from step to step, in float32.

    Attributes:
        state: Gradient of the state before the step.
        parameters: Sums over the steps so far of the gradients of the trailing parameters.
    """

    state: State
    parameters: tuple[mx.array, ...]


@functools.lru_cache(maxsize=64)
def _last_rows(count: int, locations: int) -> mx.array:
    return mx.array(np.arange(1, count + 1, dtype=np.uint32) * locations - 1)


def last_location(H: mx.array) -> mx.array:
    """The hidden state ``[B, M]`` at the last location of ``[B, *P, M]``.

    A copy, since a view would keep the whole state of every step alive. Gathered, since MLX exports
    no ``mx.contiguous``.
    """
    B, *P, M = H.shape
    return mx.take(H.reshape(-1, M), _last_rows(B, math.prod(P)), axis=0)


#: Largest number of elements of the matrix from which a weight gradient is formed (64 MiB).
_WEIGHT_GRADIENT_ELEMENTS = 1 << 24


class PlainTransition(abc.ABC):
    """Base of the transitions that are made of plain operations.

    A subclass has ``prepare``, ``forward`` and ``output`` besides the abstract methods here.
    """

    def reduce(self, residuals: Any) -> None:
        return None

    def restore(self, prepared: Any, step: Step) -> Any:
        return self.forward(prepared, step.projected, step.before)[1]

    def backward(
        self,
        prepared: Any,
        step: Step,
        handed: GradientSoFar | None,
        d_output: mx.array | None,
        d_after: State | None,
    ) -> tuple[mx.array, GradientSoFar, mx.array]:
        if handed is None:
            zeros = tuple(mx.zeros(array.shape) for array in step.after)
            handed = GradientSoFar(zeros, ())
        d_state = handed.state
        if d_after is not None:
            d_state = _add(d_state, d_after)
        if d_output is not None:
            d_state = self.add_output_gradient(d_state, d_output)
        d_projected, d_state, d_activation, d_parameters = self.step_backward(
            prepared, step, d_state
        )
        d_parameters = _add(handed.parameters, d_parameters)
        return d_projected, GradientSoFar(d_state, d_parameters), d_activation

    def weight_gradient_steps(self, step: Step) -> int:
        return max(1, _WEIGHT_GRADIENT_ELEMENTS // self.weight_gradient_elements(step))

    def weight_gradients(
        self,
        steps: Sequence[Step],
        d_activations: Sequence[mx.array],
        total: Sequence[mx.array] | None,
    ) -> Sequence[mx.array]:
        return _add(tuple(total or ()), self.steps_weight_gradients(steps, d_activations))

    def finish(self, handed: GradientSoFar) -> tuple[State, Sequence[mx.array]]:
        return handed

    def stack(self, arrays: Sequence[mx.array]) -> mx.array:
        return mx.concatenate(list(arrays)).reshape(-1, *arrays[0].shape)

    @abc.abstractmethod
    def step_backward(
        self, prepared: Any, step: Step, d_after: State
    ) -> tuple[mx.array, State, mx.array, Sequence[mx.array]]:
        """Gradients of projected, of the state before and of the activations, and those of the
        trailing parameters, from the gradient of the state after the step."""

    @abc.abstractmethod
    def weight_gradient_elements(self, step: Step) -> int:
        """Elements of the matrix from which the weight gradient of one step is formed."""

    @abc.abstractmethod
    def steps_weight_gradients(
        self, steps: Sequence[Step], d_activations: Sequence[mx.array]
    ) -> Sequence[mx.array]:
        """Gradients of the leading parameters, summed over ``steps``."""

    @abc.abstractmethod
    def add_output_gradient(self, d_state: State, d_output: mx.array) -> State:
        """``d_state`` with the gradient of the output added."""


def _add(total: Sequence[mx.array], terms: Sequence[mx.array]) -> tuple[mx.array, ...]:
    """Sum in float32; an empty total is zero."""
    terms = tuple(term.astype(mx.float32) for term in terms)
    return tuple(a + b for a, b in zip(total, terms, strict=True)) if total else terms

"""The time loop: one custom function over the sequence, whatever the cell.

MLX's own gradient of ``x[:, t]`` writes a full-size array per step, so that a plain loop costs
O(T²). Here the steps are unrolled inside one function whose backward pass walks them in reverse,
reads what the forward pass kept, and forms the weight gradient from many steps at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

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

    ``parameters`` is the list of arrays that :meth:`weight_gradients` and the step gradients
    together answer, in this order: the weights whose gradient is formed from many steps at once,
    then those whose gradient each step adds to.
    """

    #: Matrix rows of one batch entry in the weight gradient times their length.
    weight_gradient_size: int

    def prepare(self, parameters: Sequence[mx.array]) -> Any:
        """What every forward step of a sequence uses, made from the parameters once."""

    def forward(self, prepared: Any, projected: mx.array, state: State) -> tuple[State, Any]:
        """The next state, and the residuals."""

    def backward(
        self, parameters: Sequence[mx.array], step: Step, d_after: State
    ) -> tuple[mx.array, State, mx.array, Sequence[mx.array]]:
        """Gradients of projected, of the state before and of the activations, and the step
        gradients."""

    def weight_gradients(
        self, steps: Sequence[Step], d_activations: Sequence[mx.array]
    ) -> Sequence[mx.array]:
        """Gradients of the leading parameters, summed over ``steps``."""

    def output(self, state: State) -> mx.array:
        """The output ``[B, M]`` in a state."""

    def add_output_gradient(self, d_state: State, d_output: mx.array) -> State:
        """``d_state`` with the gradient of :meth:`output` added."""


#: Largest number of elements of the matrix from which a weight gradient is formed (64 MiB).
_WEIGHT_GRADIENT_ELEMENTS = 1 << 24


def unroll(
    transition: Transition, parameters: Sequence[mx.array], projected: mx.array, state: State
) -> Iterator[Step]:
    """The steps over ``projected`` ``[T, B, M]`` one by one, as plain operations."""
    prepared = transition.prepare(parameters)
    for t in range(projected.shape[0]):
        after, residuals = transition.forward(prepared, projected[t], state)
        yield Step(projected[t], state, after, residuals)
        state = after


def _backward(
    transition: Transition,
    parameters: Sequence[mx.array],
    steps: list[Step],
    d_outputs: mx.array,
    d_final: State,
    final_step: int,
) -> tuple[mx.array, State, list[mx.array]]:
    """Reverse walk over ``steps``; see :func:`run` for the arguments' meaning."""
    first_output = len(steps) - d_outputs.shape[0]
    d_final = tuple(d.astype(mx.float32) for d in d_final)
    d_state = tuple(mx.zeros_like(d) for d in d_final)
    d_projected: list[mx.array] = []
    d_weights: list[mx.array] = []
    d_steps: list[mx.array] = []
    rows = steps[0].projected.shape[0] * transition.weight_gradient_size
    chunk = max(1, _WEIGHT_GRADIENT_ELEMENTS // rows)
    pending: list[tuple[Step, mx.array]] = []
    for t in range(len(steps) - 1, -1, -1):
        if t + 1 == final_step:
            d_state = tuple(d + final for d, final in zip(d_state, d_final, strict=True))
        if t >= first_output:
            d_output = d_outputs[t - first_output].astype(mx.float32)
            d_state = transition.add_output_gradient(d_state, d_output)
        d_x, d_state, d_activation, d_step = transition.backward(parameters, steps[t], d_state)
        d_projected.append(d_x)
        d_steps = _add(d_steps, d_step)
        pending.append((steps[t], d_activation))
        if len(pending) == chunk or t == 0:
            d_weights = _add(d_weights, transition.weight_gradients(*zip(*pending, strict=True)))
            pending = []
    gradients = [
        d.astype(parameter.dtype)
        for d, parameter in zip([*d_weights, *d_steps], parameters, strict=True)
    ]
    return mx.stack(d_projected[::-1]), d_state, gradients


def _add(total: list[mx.array], terms: Sequence[mx.array]) -> list[mx.array]:
    """Sum in float32; an empty total is zero."""
    terms = [term.astype(mx.float32) for term in terms]
    return [a + b for a, b in zip(total, terms, strict=True)] if total else terms


def run(
    transition: Transition,
    parameters: Sequence[mx.array],
    projected: mx.array,
    state: State,
    *,
    skip: int,
    final_step: int,
    keep: bool,
) -> tuple[mx.array, State]:
    """Run the sequence, with a gradient for ``parameters``, ``projected`` and ``state``.

    Args:
        transition: The cell's step.
        parameters: Its arrays.
        projected: Projected inputs of all steps, ``[T', B, M]``.
        state: State before the first step.
        skip: Number of first steps without an output.
        final_step: The number of steps after which the returned state is taken, 1 or more.
        keep: Keep every step's residuals for the gradient. Otherwise the gradient, where one is
            asked for, runs the forward pass a second time.

    Returns:
        Outputs ``[T' - skip, B, M]`` and the state after ``final_step`` steps.
    """
    kept: list[Step] = []
    width = len(state)

    def split(arrays: Sequence[mx.array]) -> tuple[mx.array, State, Sequence[mx.array]]:
        return arrays[0], tuple(arrays[1 : 1 + width]), arrays[1 + width :]

    @mx.custom_function
    def sequence(*arrays: mx.array) -> tuple[mx.array, ...]:
        projected, state, parameters = split(arrays)
        outputs, final = [], state
        for t, step in enumerate(unroll(transition, parameters, projected, state)):
            if keep:
                kept.append(step)
            if t >= skip:
                # A copy, since a view would keep the whole state of every step alive.
                outputs.append(mx.contiguous(transition.output(step.after)))
            if t + 1 == final_step:
                final = step.after
        return (mx.stack(outputs), *final)

    @sequence.vjp
    def sequence_vjp(primals, cotangents, _):
        projected, state, parameters = split(primals)
        steps = kept or list(unroll(transition, parameters, projected, state))
        d_projected, d_state, d_parameters = _backward(
            transition, parameters, steps, cotangents[0], tuple(cotangents[1:]), final_step
        )
        d_state = tuple(d.astype(s.dtype) for d, s in zip(d_state, state, strict=True))
        return (d_projected.astype(projected.dtype), *d_state, *d_parameters)

    outputs, *final = sequence(projected, *state, *parameters)
    return outputs, tuple(final)

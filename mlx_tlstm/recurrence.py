"""The time loop: one custom function over the sequence, whatever the cell.

MLX's own gradient of ``x[:, t]`` writes a full-size array per step, so that a plain loop costs
O(T²). Here the steps are unrolled inside one function whose backward pass walks them in reverse,
reads what the forward pass kept, and forms the weight gradient from many steps at once. Where
nothing is kept, as in evaluation mode, plain operations are unrolled as they are, which MLX can
export, and their gradient is MLX's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from mlx_tlstm import ops
from mlx_tlstm.transition import PlainTransition, State, Step, Transition

#: What the forward pass keeps for the gradient: every step's residuals and states, its states and
#: what is dear to compute anew, or nothing, so that the gradient runs the forward pass again.
Keep = Literal["residuals", "states", "nothing"]


def unroll(
    transition: Transition,
    prepared: Any,
    projected: mx.array,
    state: State,
    own_gradient: bool = True,
) -> Iterator[tuple[Step, mx.array]]:
    """The steps over ``projected`` ``[T, B, M]`` one by one, each with its output.

    Without ``own_gradient`` that of the steps is MLX's, which sums up over the steps in the
    weights' type: half precision is then widened to float32 and rounded back for each step.
    """
    if not own_gradient:
        wide = _map_arrays(lambda array: array.astype(mx.float32), prepared)
    for x in _time_steps(projected):
        if not own_gradient:
            prepared = _map_arrays(lambda a, like: a.astype(like.dtype), wide, prepared)
        after, residuals, output = transition.forward(prepared, x, state)
        yield Step(x, state, after, residuals), output
        state = after


def _time_steps(arrays: mx.array) -> list[mx.array]:
    """The time steps ``[B, M]`` of ``[T, B, M]``.

    Cut in halves again and again: MLX's own gradient of a slice is as large as what it is cut from,
    so that it costs O(T log T) in place of O(T²).
    """
    T, B, M = arrays.shape
    parts = [(T, arrays.reshape(T * B, M))]
    steps: list[mx.array] = []
    while parts:
        length, rows = parts.pop()
        if length == 1:
            steps.append(rows)
        else:
            half = length // 2
            parts += [(length - half, rows[half * B :]), (half, rows[: half * B])]
    return steps


def _restored(transition: Transition, prepared: Any, step: Step, handed: Any) -> Step:
    """``step`` with all its residuals, once what the step after handed on is there."""
    if handed is not None:
        # Nothing else in the graph holds it back, and early it would be kept for long.
        computed = [array for _, array in tree_flatten(handed) if array is not None]
        arrays = ops.after([step.projected, *step.before], computed)
        step = step._replace(projected=arrays[0], before=tuple(arrays[1:]))
    return step._replace(residuals=transition.restore(prepared, step))


def _map_arrays(function: Callable[..., mx.array], *trees: Any) -> Any:
    return tree_map(lambda *a: None if a[0] is None else function(*a), *trees)


def _after(tree: Any, computed: Sequence[mx.array]) -> Any:
    """The arrays of ``tree``, once those of ``computed`` are there."""
    arrays = [array for _, array in tree_flatten(tree) if array is not None]
    held = iter(ops.after(arrays, computed))
    return _map_arrays(lambda _: next(held), tree)


def _backward(
    transition: Transition,
    parameters: Sequence[mx.array],
    steps: list[Step],
    d_outputs: mx.array,
    d_final: State,
    final_step: int,
    restore: bool,
) -> tuple[mx.array, State, list[mx.array]]:
    """Reverse walk over ``steps``; see :func:`run` for the arguments' meaning."""
    prepared = transition.prepare(parameters)
    first_output = len(steps) - d_outputs.shape[0]
    d_output_steps = _time_steps(mx.contiguous(d_outputs.astype(mx.float32)))
    d_final = tuple(d.astype(mx.float32) for d in d_final)
    handed: Any | None = None
    d_projected: list[mx.array] = []
    d_weights: Sequence[mx.array] | None = None
    chunk = transition.weight_gradient_steps(steps[0])
    pending: list[tuple[Step, mx.array]] = []
    for t in range(len(steps) - 1, -1, -1):
        step = steps[t]
        if restore:
            step = _restored(transition, prepared, step, handed)
        d_output = d_output_steps[t - first_output] if t >= first_output else None
        d_after = d_final if t + 1 == final_step else None
        d_x, handed, d_activation = transition.backward(prepared, step, handed, d_output, d_after)
        d_projected.append(d_x)
        pending.append((step._replace(residuals=None), d_activation))
        if len(pending) == chunk or t == 0:
            d_weights = transition.weight_gradients(*zip(*pending, strict=True), d_weights)
            pending = []
            # Nothing else in the graph says when, and late, all that it gathers would be kept.
            handed = _after(handed, d_weights)
    d_state, d_steps = transition.finish(handed)
    gradients = [
        d.astype(parameter.dtype)
        for d, parameter in zip([*d_weights, *d_steps], parameters, strict=True)
    ]
    return transition.stack(d_projected[::-1]), d_state, gradients


def run(
    transition: Transition,
    parameters: Sequence[mx.array],
    projected: mx.array,
    state: State,
    *,
    skip: int,
    final_step: int,
    keep: Keep,
) -> tuple[mx.array, State]:
    """Run the sequence, with a gradient for ``parameters``, ``projected`` and ``state``.

    Args:
        transition: The cell's step.
        parameters: Its arrays.
        projected: Projected inputs of all steps, ``[T', B, M]``.
        state: State before the first step.
        skip: Number of first steps without an output.
        final_step: The number of steps after which the returned state is taken, 1 or more.
        keep: What is kept for the gradient.

    Returns:
        Outputs ``[T' - skip, B, M]`` and the state after ``final_step`` steps.
    """
    kept: list[Step] = []
    width = len(state)
    own_gradient = keep != "nothing" or not isinstance(transition, PlainTransition)

    def split(arrays: Sequence[mx.array]) -> tuple[mx.array, State, Sequence[mx.array]]:
        return arrays[0], tuple(arrays[1 : 1 + width]), arrays[1 + width :]

    def forward(
        projected: mx.array, state: State, parameters: Sequence[mx.array]
    ) -> tuple[mx.array, State]:
        prepared = transition.prepare(parameters)
        outputs, final = [], state
        steps = unroll(transition, prepared, projected, state, own_gradient)
        for t, (step, output) in enumerate(steps):
            if keep == "states":
                step = step._replace(residuals=transition.reduce(step.residuals))
            if keep != "nothing":
                kept.append(step)
            if t >= skip:
                outputs.append(output)
            if t + 1 == final_step:
                final = step.after
        return transition.stack(outputs), final

    if not own_gradient:
        return forward(projected, state, parameters)

    @mx.custom_function
    def sequence(*arrays: mx.array) -> tuple[mx.array, ...]:
        outputs, final = forward(*split(arrays))
        return (outputs, *final)

    @sequence.vjp
    def sequence_vjp(primals, cotangents, _):
        projected, state, parameters = split(primals)
        steps = kept
        if not steps:
            prepared = transition.prepare(parameters)
            steps = [step for step, _ in unroll(transition, prepared, projected, state)]
        d_projected, d_state, d_parameters = _backward(
            transition,
            parameters,
            steps,
            cotangents[0],
            tuple(cotangents[1:]),
            final_step,
            restore=keep == "states",
        )
        d_state = tuple(d.astype(s.dtype) for d, s in zip(d_state, state, strict=True))
        return (d_projected.astype(projected.dtype), *d_state, *d_parameters)

    outputs, *final = sequence(projected, *state, *parameters)
    return outputs, tuple(final)

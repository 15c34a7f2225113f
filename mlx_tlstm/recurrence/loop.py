"""The time loop: one custom function over the sequence, whatever the cell.

MLX's own gradient of ``x[:, t]`` writes a full-size array per step, so that a plain loop costs
O(T²). Here the steps are unrolled inside one function whose backward pass walks them in reverse,
reads what the forward pass kept, and forms the weight gradient from many steps at once. Where
nothing is kept, as in evaluation mode, plain operations are unrolled as they are, which MLX can
export, and their gradient is MLX's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from mlx_tlstm.recurrence.contract import State, Step
from mlx_tlstm.recurrence.ordering import after
from mlx_tlstm.recurrence.transition import Transition

#: What the forward pass keeps for the gradient: every step's residuals and states, its states and
#: what is dear to compute anew, or nothing, so that the gradient runs the forward pass again.
Keep = Literal["residuals", "states", "nothing"]


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
    walk = partial(forward, transition, skip, final_step, keep)
    if keep == "nothing" and transition.plain:
        return walk([], projected, state, parameters, widen=True)
    # MLX hands to a gradient what the function took and what it returned. What is kept is no
    # result, which would be computed and held whether or not there is a gradient; so the forward
    # pass adds it to a list that the gradient is given too.
    kept: list[Step] = []
    sequence = mx.custom_function(partial(walk, kept))
    sequence.vjp(partial(_gradient, transition, final_step, keep, kept))
    return sequence(projected, tuple(state), list(parameters))


def forward(
    transition: Transition,
    skip: int,
    final_step: int,
    keep: Keep,
    kept: list[Step],
    projected: mx.array,
    state: State,
    parameters: Sequence[mx.array],
    widen: bool = False,
) -> tuple[mx.array, State]:
    """The steps one by one; see :func:`run`.

    Args:
        kept: What ``keep`` says of each step is added here.
        widen: For MLX's own gradient, which sums up over the steps in the weights' type: half
            precision is widened to float32, and rounded back for each step.
    """
    prepared = transition.prepare(parameters)
    if widen:
        wide = _map_arrays(lambda array: array.astype(mx.float32), prepared)
    outputs, final = [], state
    for t, x in enumerate(_time_steps(projected)):
        if widen:
            prepared = _map_arrays(lambda a, like: a.astype(like.dtype), wide, prepared)
        after, residuals, output = transition.forward(prepared, x, state)
        if keep == "states":
            residuals = transition.reduce(residuals)
        if keep != "nothing":
            kept.append(Step(x, state, after, residuals))
        if t >= skip:
            outputs.append(output)
        if t + 1 == final_step:
            final = after
        state = after
    return transition.stack(outputs), final


def _gradient(
    transition: Transition,
    final_step: int,
    keep: Keep,
    kept: list[Step],
    primals: tuple[mx.array, State, Sequence[mx.array]],
    cotangents: tuple[mx.array, State],
    _: tuple[mx.array, State],
) -> tuple[mx.array, State, list[mx.array]]:
    """Gradients of projected inputs, state and parameters, from those of outputs and final state.

    A walk over ``kept`` in reverse; see :func:`run` for the other arguments.
    """
    projected, state, parameters = primals
    d_outputs, d_final = cotangents
    if keep == "nothing":
        forward(transition, 0, final_step, "residuals", kept := [], *primals)
    prepared = transition.prepare(parameters)
    first_output = len(kept) - d_outputs.shape[0]
    d_output_steps = _time_steps(mx.contiguous(d_outputs.astype(mx.float32)))
    d_final = tuple(d.astype(mx.float32) for d in d_final)
    handed: Any | None = None
    d_projected: list[mx.array] = []
    d_weights: Sequence[mx.array] | None = None
    chunk = transition.weight_gradient_steps(projected.shape[1])
    pending: list[tuple[Step, mx.array]] = []
    for t in range(len(kept) - 1, -1, -1):
        step = kept[t]
        if keep == "states":
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
    d_state = tuple(d.astype(s.dtype) for d, s in zip(d_state, state, strict=True))
    d_parameters = [
        d.astype(parameter.dtype)
        for d, parameter in zip([*d_weights, *d_steps], parameters, strict=True)
    ]
    return transition.stack(d_projected[::-1]).astype(projected.dtype), d_state, d_parameters


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
        arrays = after([step.projected, *step.before], computed)
        step = step._replace(projected=arrays[0], before=tuple(arrays[1:]))
    return step._replace(residuals=transition.restore(prepared, step))


def _map_arrays(function: Callable[..., mx.array], *trees: Any) -> Any:
    return tree_map(lambda *a: None if a[0] is None else function(*a), *trees)


def _after(tree: Any, computed: Sequence[mx.array]) -> Any:
    """The arrays of ``tree``, once those of ``computed`` are there."""
    arrays = [array for _, array in tree_flatten(tree) if array is not None]
    held = iter(after(arrays, computed))
    return _map_arrays(lambda _: next(held), tree)

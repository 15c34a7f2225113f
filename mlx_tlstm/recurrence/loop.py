"""The loop over time steps, the same for all cells, with a gradient of its own.

A plain Python loop over ``x[:, t]`` would be slow to differentiate: MLX's gradient of each slice is
an array as large as all of ``x``, so that the cost grows with T². Here the whole sequence is one
``mx.custom_function``. Its forward pass runs the steps one after the other and keeps what their
gradients need. Its backward pass goes through them from the last to the first, and forms the weight
gradient of many steps in one matrix product.

The steps that follow the returned state only flush the last outputs out: they run on the locations
that these still depend on, a corner that becomes smaller.

In evaluation mode nothing is kept. Plain operations then run as an ordinary loop, which MLX can
export, and whose gradient, if one is asked for, is MLX's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import mlx.core as mx
from mlx.utils import tree_map

from mlx_tlstm.recurrence.contract import State, Step
from mlx_tlstm.recurrence.ordering import after
from mlx_tlstm.recurrence.pieces import pieces
from mlx_tlstm.recurrence.transition import Transition
from mlx_tlstm.recurrence.trees import arrays_of, with_arrays

#: What the forward pass keeps of each step for the gradient. "residuals": its states and all that
#: its gradient reads. "states": its states and the few residuals that would be slow to compute
#: again; the gradient computes the rest. "nothing": the gradient begins with a forward pass.
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
    """Run a cell over a sequence; differentiable in ``parameters``, ``projected`` and ``state``.

    Args:
        transition: The cell's step.
        parameters: The arrays that the step takes, in the transition's order.
        projected: Projected inputs of all steps, ``[T', B, M]``. T' counts the inputs and the steps
            that flush the last outputs out.
        state: State before the first step.
        skip: The first ``skip`` steps give no output, since no input has reached the output yet.
        final_step: The returned state is the one after so many steps, 1 or more.
        keep: What the forward pass keeps for the gradient.

    Returns:
        Outputs ``[T' - skip, B, M]`` and the state after ``final_step`` steps.
    """
    walk = partial(forward, transition, skip, final_step, keep)
    if keep == "nothing" and transition.backend.plain:
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
        kept: A list to which each step is added, with what ``keep`` asks for.
        widen: Convert half-precision parameters to float32 once and round them back in every step.
            The values are the same, but MLX's own gradient then sums over the steps in float32.
    """
    given = prepared = transition.prepare(parameters)
    if widen:
        prepared = _map_arrays(lambda array: array.astype(mx.float32), given)
    outputs, final = [], state
    xs = _time_steps(projected)
    steps = _steps(transition, prepared, len(xs), final_step)
    for t, (x, (current, prepared)) in enumerate(zip(xs, steps, strict=True)):
        if current is not transition:
            transition, state = current, current.crop(state)
        if widen:
            prepared = _map_arrays(lambda a, like: a.astype(like.dtype), prepared, given)
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
    return transition.backend.stack(outputs), final


def _steps(
    transition: Transition, prepared: Any, count: int, final_step: int
) -> Iterator[tuple[Transition, Any]]:
    """The transition of each of ``count`` steps and what it uses."""
    for t in range(count):
        if t >= final_step:
            transition, prepared = transition.corner(prepared, count - t)
        yield transition, prepared


def _gradient(
    transition: Transition,
    final_step: int,
    keep: Keep,
    kept: list[Step],
    primals: tuple[mx.array, State, Sequence[mx.array]],
    cotangents: tuple[mx.array, State],
    _: tuple[mx.array, State],
) -> tuple[mx.array, State, list[mx.array]]:
    """The backward pass: gradients of inputs, state and parameters.

    Args:
        transition: See :func:`run`, also for ``final_step`` and ``keep``.
        final_step: See there.
        keep: See there.
        kept: The steps as the forward pass left them, first to last.
        primals: Projected inputs, state and parameters: the arguments of the forward pass.
        cotangents: Gradients of what it returned: outputs and final state.
    """
    projected, state, parameters = primals
    d_outputs, d_final = cotangents
    kept = kept[: len(projected)]  # a derivative by mx.jvp ran the forward pass again
    if keep == "nothing":
        forward(transition, 0, final_step, "residuals", kept := [], *primals)
    steps = list(_steps(transition, transition.prepare(parameters), len(kept), final_step))
    first_output = len(kept) - d_outputs.shape[0]
    d_output_steps = _time_steps(mx.contiguous(d_outputs.astype(mx.float32)))
    d_final = tuple(d.astype(mx.float32) for d in d_final)
    handed: Any | None = None
    d_projected: list[mx.array] = []
    d_weights: Sequence[mx.array] | None = None
    pending: list[tuple[Step, mx.array]] = []
    for t in range(len(kept) - 1, -1, -1):
        step, (transition, prepared) = kept[t], steps[t]
        if handed is not None and transition is not steps[t + 1][0]:
            handed = transition.widen(handed)
        if keep == "states":
            step = _restored(transition, prepared, step, handed)
        d_output = d_output_steps[t - first_output] if t >= first_output else None
        d_after = d_final if t + 1 == final_step else None
        d_x, handed, d_activation = transition.backward(prepared, step, handed, d_output, d_after)
        d_projected.append(d_x)
        pending.append((step._replace(residuals=None), d_activation))
        chunk = transition.weight_gradient_steps(projected.shape[1])
        if len(pending) == chunk or t == 0 or transition is not steps[t - 1][0]:
            d_weights = transition.weight_gradients(*zip(*pending, strict=True), d_weights)
            pending = []
            # Makes MLX compute it now: later, all that it reads would have to be kept until then.
            handed = with_arrays(handed, after(arrays_of(handed, handed), d_weights))
    d_state, d_steps = transition.finish(handed)
    d_state = tuple(d.astype(s.dtype) for d, s in zip(d_state, state, strict=True))
    d_parameters = [
        d.astype(parameter.dtype)
        for d, parameter in zip([*d_weights, *d_steps], parameters, strict=True)
    ]
    stack = transition.backend.stack
    return stack(d_projected[::-1]).astype(projected.dtype), d_state, d_parameters


def _time_steps(arrays: mx.array) -> list[mx.array]:
    """The time steps ``[B, M]`` of ``[T, B, M]``, by MLX's own operations."""
    T, B, M = arrays.shape
    return pieces(arrays.reshape(T * B, M), B, plain=True)


def _restored(transition: Transition, prepared: Any, step: Step, handed: Any) -> Step:
    """``step`` with all its residuals, computed only after ``handed``, from the step after it."""
    if handed is not None:
        # Without this MLX could compute it much earlier, and keep it until its turn comes.
        arrays = after([step.projected, *step.before], arrays_of(handed, handed))
        step = step._replace(projected=arrays[0], before=tuple(arrays[1:]))
    return step._replace(residuals=transition.restore(prepared, step))


def _map_arrays(function: Callable[..., mx.array], *trees: Any) -> Any:
    return tree_map(lambda *a: None if a[0] is None else function(*a), *trees)

"""Any recurrent step over a sequence, for a cost that grows with its length alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx

from mlx_tlstm.checks import require, require_integer
from mlx_tlstm.recurrence.captured import CapturedArrays
from mlx_tlstm.recurrence.checkpointing import checkpointed, refused_arguments, used_arrays
from mlx_tlstm.recurrence.lending import Lent
from mlx_tlstm.recurrence.pieces import pieces, time_steps
from mlx_tlstm.recurrence.trees import arrays_of, named_arrays, require_same_form, with_arrays

#: Takes the state and one time step of the inputs; returns the next state and an output.
StepFunction = Callable[[Any, Any], tuple[Any, Any]]


def scan(
    step: StepFunction,
    state: Any,
    xs: Any,
    *,
    length: int | None = None,
    time_axis: int = 0,
    checkpoint: int | None = None,
) -> tuple[Any, Any]:
    """Run ``step`` over all time steps, one after the other, as ``jax.lax.scan`` does.

    It computes what this loop does::

        ys = []
        for t in range(T):
            state, y = step(state, xs[t])
            ys.append(y)
        return state, mx.stack(ys)

    MLX's gradient of ``xs[t]`` is an array as large as ``xs``, so that the gradient of that loop
    costs time in proportion to T². Here it is in proportion to T.

    State, ``xs`` and ``y`` are trees: an array, ``None``, or tuples, named tuples, lists and
    dictionaries of them. What ``step`` reads besides, as the weights of a module, gets its gradient
    as usual.

    Args:
        step: ``step(state, x) -> (state, y)``: the next state, of the shapes and types of the one
            before, and an output of the same form in all steps. It may write into the state that it
            is given, which nobody else has.
        state: State before the first step.
        xs: Inputs, each array with a time axis; ``None`` if the steps take none, with ``length``.
        length: T, where ``xs`` has no arrays that say it.
        time_axis: The time axis in ``xs`` and ``ys``: 0 for ``[T, …]``, 1 for ``[B, T, …]``.
        checkpoint: N keeps every N-th state for the gradient, which computes the steps in between
            anew: one more forward pass, and least memory where N is about √T. ``step`` is called
            again for it and has to do the same again, and is tried on zeros first; random numbers
            of ``mx.random`` are repeated. While the steps are called, the arrays that ``step``
            reads are replaced, and no other thread may use them then. ``None`` keeps everything.

    Returns:
        The state after the last step, and the outputs of all, ``[T, …]`` or as ``time_axis`` says.

    Raises:
        ValueError: An argument is wrong, the lengths in ``xs`` or ``length`` differ, or ``step``
            changes the form of the state or of ``y``; the message names the array. With
            ``checkpoint``, while a gradient is formed: ``step`` reads arrays that cannot be found
            from it. They are looked for in closures, defaults, attributes, globals that it names,
            modules, containers, and what these refer to.
    """
    return run_scan("scan", step, state, xs, length, time_axis, checkpoint)


def run_scan(
    owner: str,
    step: StepFunction,
    state: Any,
    xs: Any,
    length: int | None = None,
    time_axis: int = 0,
    checkpoint: int | None = None,
    plain: bool = False,
    name: str = "step",
) -> tuple[Any, Any]:
    """:func:`scan`, whose errors begin with ``owner`` and call the step ``name``.

    With ``plain`` it is made of MLX's own operations only, which can be exported; see
    :func:`pieces`.
    """
    require(callable(step), owner, name, "a function (state, x) -> (state, y)", step)
    time_axis = require_integer(owner, "time_axis", time_axis, minimum=0)
    if checkpoint is not None:
        checkpoint = require_integer(owner, "checkpoint", checkpoint)
    named_arrays(owner, "state", state)
    T = _length(owner, xs, length, time_axis)
    steps = _Steps(owner, name, step, state, xs, time_axis, plain)
    inputs = [mx.moveaxis(array, time_axis, 0) for array in arrays_of(xs, xs)]
    if checkpoint is None:
        state, outputs = steps.run(state, inputs, T)
        return state, with_arrays(steps.output, steps.stacked(outputs, time_axis))
    state, parts = _run_checkpointed(steps, state, inputs, T, checkpoint)
    ys = [mx.moveaxis(mx.concatenate(arrays), 0, time_axis) for arrays in zip(*parts, strict=True)]
    return state, with_arrays(steps.output, ys)


class _Steps:
    """The steps of a scan, checked.

    Args:
        owner: Begins the errors.
        name: Names the function in errors.
        function: One step.
        state: A state, for its form.
        xs: Inputs, for their form.
        time_axis: The time axis of the outputs.
        plain: See :func:`run_scan`.

    Attributes:
        output: What the first step returned; every other step has to return the same form.
    """

    def __init__(
        self,
        owner: str,
        name: str,
        function: StepFunction,
        state: Any,
        xs: Any,
        time_axis: int,
        plain: bool,
    ) -> None:
        self.owner, self.name, self.function, self.state = owner, name, function, state
        self.output: Any = None
        self._xs, self._time_axis, self._plain = xs, time_axis, plain
        self._begun = False

    def run(self, state: Any, inputs: list[mx.array], length: int) -> tuple[Any, list[Any]]:
        """``length`` steps, on inputs ``[length, …]``: the state after them, and the outputs."""
        cut = [time_steps(array, self._plain) for array in inputs]
        outputs = []
        for t in range(length):
            x = with_arrays(self._xs, [parts[t] for parts in cut])
            lent = Lent(state, self.state)
            state, y = self._checked(self.function(lent.state, x))
            state = lent.returned(state)
            outputs.append(y)
        return state, outputs

    def stacked(self, outputs: list[Any], axis: int) -> list[mx.array]:
        """The arrays of several steps' outputs, stacked."""
        rows = [arrays_of(y, self.output) for y in outputs]
        return [mx.stack(arrays, axis=axis) for arrays in zip(*rows, strict=True)]

    def _checked(self, result: Any) -> tuple[Any, Any]:
        owner, time_axis = self.owner, self._time_axis
        pair = isinstance(result, tuple) and len(result) == 2
        require(pair, owner, self.name, "a function that returns (state, y)", result)
        state, y = result
        require_same_form(owner, "state", state, self.state, "after each step, as before it,")
        if self._begun:
            require_same_form(owner, "y", y, self.output, "in each step, as in the first,")
            return state, y
        for name, array in named_arrays(owner, "y", y):
            expected = f"of {time_axis} or more axes, for 'time_axis' {time_axis},"
            require(array.ndim >= time_axis, owner, name, expected, f"shape {array.shape}")
        self.output, self._begun = y, True
        return state, y


def _run_checkpointed(
    steps: _Steps, state: Any, inputs: list[mx.array], length: int, every: int
) -> tuple[Any, list[list[mx.array]]]:
    """The last state, and for each part of the sequence the arrays of its outputs."""
    like, count = steps.state, len(arrays_of(state, state))

    def run(arguments: list[mx.array], length: int) -> list[mx.array]:
        state, outputs = steps.run(with_arrays(like, arguments), arguments[count:], length)
        return arrays_of(state, like) + steps.stacked(outputs, 0)

    arrays = arrays_of(state, like)
    first = [*arrays, *(array[:1] for array in inputs)]
    captured = CapturedArrays(steps.owner, steps.name, steps.function)
    captured.keep(used_arrays(captured, partial(run, length=1), first))
    cut, parts, read = [pieces(array, every) for array in inputs], [], captured.arrays
    refused: dict[int, dict[int, str]] = {}  # by the length of a part
    for index, start in enumerate(range(0, length, every)):
        steps_of_part = min(every, length - start)
        part = partial(run, length=steps_of_part)
        arguments = [*arrays, *(array[index] for array in cut)]
        if steps_of_part not in refused:
            refused[steps_of_part] = refused_arguments(captured, part, arguments)
        results, read = checkpointed(
            steps.owner, steps.name, captured, part, arguments, read, refused[steps_of_part]
        )
        arrays, outputs = results[:count], results[count:]
        parts.append(outputs)
    captured.require_unchanged()
    return with_arrays(like, arrays), parts


def _length(owner: str, xs: Any, length: int | None, time_axis: int) -> int:
    """T, by the arrays of ``xs`` and ``length``, which must agree."""
    if length is not None:
        length = require_integer(owner, "length", length)
    arrays = named_arrays(owner, "xs", xs)
    if not arrays:
        require(length is not None, owner, "length", "given where 'xs' has no arrays", length)
        return length
    for name, array in arrays:
        expected = f"of more than {time_axis} axes, for 'time_axis' {time_axis},"
        require(array.ndim > time_axis, owner, name, expected, f"shape {array.shape}")
        T = array.shape[time_axis]
        require(T > 0, owner, name, "of one time step or more", f"shape {array.shape}")
    first, T = arrays[0][0], arrays[0][1].shape[time_axis]
    for name, array in arrays:
        expected = f"of {T} time steps on axis {time_axis}, as '{first}' is,"
        require(array.shape[time_axis] == T, owner, name, expected, f"shape {array.shape}")
    expected = f"{T}, the time steps of '{first}', or None"
    require(length in (None, T), owner, "length", expected, length)
    return T

"""A function that keeps nothing for its gradient but its arguments, and is run again there.

``mx.checkpoint`` does the same, but gives arrays that the function reads beside its arguments, such
as a module's weights, a gradient of zero without a word. Here these arrays are found
(:mod:`mlx_tlstm.recurrence.captured`), and made arguments. That all were found is proven by MLX
itself: the forward pass runs with arguments and found arrays behind ``mx.stop_gradient``, so that a
path from its results to anything that is differentiated can only lead through an array that was not
found. Then MLX asks for the gradient of :func:`_guarded`, which raises.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import mlx.core as mx

from mlx_tlstm.recurrence.captured import CapturedArrays
from mlx_tlstm.recurrence.ordering import after
from mlx_tlstm.recurrence.random_state import current_key, random_key

Arrays = list[mx.array]
#: From arguments and found arrays to results.
_Again = Callable[[Arrays, Arrays], Arrays]


def used_arrays(
    captured: CapturedArrays, run: Callable[[Arrays], Arrays], arguments: Arrays
) -> list[int]:
    """The indices of those of ``captured.arrays`` from which ``run(arguments)`` is made.

    ``run`` is called on zeros, and nothing is computed. ``mx.random`` stays as it is.
    """
    used: set[int] = set()

    def marked(index: int, array: mx.array) -> mx.array:
        mark = mx.custom_function(lambda array: array)
        mark.vjp(lambda _, cotangent, __: (used.add(index), cotangent)[1])
        return mark(array)

    def results(arrays: Arrays) -> Arrays:
        with captured.replaced([marked(index, array) for index, array in enumerate(arrays)]):
            return run(_zeros(arguments))

    return sorted(used - _refused(results, captured.arrays).keys())


def refused_arguments(
    captured: CapturedArrays, run: Callable[[Arrays], Arrays], arguments: Arrays
) -> dict[int, str]:
    """The indices of the arguments by which MLX cannot differentiate ``run``, with its errors.

    Such is an array from which an index is made. ``run`` is called as by :func:`used_arrays`.
    """

    def results(arguments: Arrays) -> Arrays:
        with captured.replaced(_zeros(captured.arrays)):
            return run(arguments)

    return _refused(results, arguments)


def _refused(function: Callable[[Arrays], Arrays], arrays: Arrays) -> dict[int, str]:
    """The indices of the arrays by which MLX cannot differentiate ``function``, with its errors."""
    arrays = _zeros(arrays)

    def differentiate(indices: list[int]) -> None:
        def total(*traced: mx.array) -> mx.array:
            every = list(arrays)
            for index, array in zip(indices, traced, strict=True):
                every[index] = array
            with random_key(current_key()):
                results = function(every)
            sums = [mx.abs(array).sum().astype(mx.float32) for array in results if _inexact(array)]
            return sum(sums, mx.array(0.0))

        mx.vjp(total, [arrays[index] for index in indices], [mx.array(1.0)])

    refused = {}
    floating = [index for index, array in enumerate(arrays) if _inexact(array)]
    try:
        if floating:
            differentiate(floating)
    except (ValueError, RuntimeError):  # by one of them at least
        for index in floating:
            try:
                differentiate([index])
            except (ValueError, RuntimeError) as error:
                refused[index] = str(error)
    return refused


def _zeros(arrays: Arrays) -> Arrays:
    """Arrays of the same form that are made of nothing of the caller's.

    MLX's vjp ends an outer one's tracing of whatever its results are made of: if the caller then
    evaluated any of that, its gradient would be zero without a word.
    """
    return [mx.zeros_like(array) for array in arrays]


def checkpointed(
    owner: str,
    name: str,
    captured: CapturedArrays,
    run: Callable[[Arrays], Arrays],
    arguments: Arrays,
    arrays: Arrays,
    refused: Mapping[int, str],
) -> tuple[Arrays, Arrays]:
    """``run(arguments)``, whose gradient computes everything in between anew.

    ``arrays`` come back, to be passed to the next call of a sequence: their gradients are then
    added up call by call, where MLX would first make and keep one for every call.

    Args:
        owner: Begins the errors.
        name: Names the function in errors.
        captured: The arrays that it reads beside its arguments.
        run: The function, pure but for ``mx.random``, whose numbers are repeated.
        arguments: Its arguments.
        arrays: ``captured.arrays``, or what the call before returned for them.
        refused: The :func:`refused_arguments`.

    Raises:
        ValueError: While a gradient is formed that leads through arrays that were not found.
    """
    key = current_key()

    def again(arguments: Arrays, arrays: Arrays) -> Arrays:
        with captured.replaced(arrays), random_key(key):
            return run(arguments)

    with captured.replaced([mx.stop_gradient(array) for array in captured.arrays]):
        stopped = [mx.stop_gradient(array) for array in arguments]
        results = run(stopped)
    # What the function only hands on is no result of its own.
    own = {id(array): argument for array, argument in zip(stopped, arguments, strict=True)}
    results = [own.get(id(array), array) for array in results]
    handed_on = {id(array) for array in arguments}
    places = [
        index
        for index, array in enumerate(results)
        if _inexact(array) and id(array) not in handed_on
    ]
    if places:
        error = (
            f"[{owner}] '{name}' must read arrays from where they can be found, with 'checkpoint', "
            "but got a function that reads some by a way of its own: let it close over them or "
            "their module, hold them as an attribute, take them in the state, or leave "
            "'checkpoint' out"
        )
        guarded = _guarded(error, [results[place] for place in places])
        given = [
            _guarded(refused[index], [array])[0] if index in refused else array
            for index, array in enumerate(arguments)
        ]
        passed = _gate(again, places, given, arrays, guarded, refused)
        for place, array in zip(places, passed[: len(places)], strict=True):
            results[place] = array
        arrays = passed[len(places) :]
    return results, arrays


def _guarded(error: str, arrays: Arrays) -> Arrays:
    """The same arrays, which must not depend on anything that is differentiated."""
    guard = mx.custom_function(lambda *arrays: list(arrays))

    def refuse(*_: Any) -> Any:
        raise ValueError(error)

    guard.vjp(refuse)
    guard.jvp(refuse)
    guard.vmap(lambda arrays, axes: (_guarded(error, _list(arrays)), _list(axes)))
    return guard(*arrays)


def _gate(
    again: _Again,
    places: list[int],
    arguments: Arrays,
    arrays: Arrays,
    results: Arrays,
    refused: Collection[int],
) -> Arrays:
    """``results``, with derivatives of what ``again`` computes at ``places``, and ``arrays``.

    It has none by the arguments of the indices ``refused``.
    """
    gate = mx.custom_function(lambda arguments, arrays, results: [*results, *arrays])
    floating = [index for index, a in enumerate(arguments) if _inexact(a) and index not in refused]

    def of_floating(arguments: Arrays) -> Callable[..., Arrays]:
        def function(*traced: mx.array) -> Arrays:
            every = list(arguments)
            for index, array in zip(floating, traced, strict=False):
                every[index] = array
            values = again(every, list(traced[len(floating) :]))
            return [values[place] for place in places]

        return function

    @gate.vjp
    def gradient(primals: Any, cotangents: Any, __: Any) -> Any:
        arguments, arrays, _ = primals
        cotangents = _list(cotangents)
        cotangents, later = cotangents[: len(places)], cotangents[len(places) :]
        # Without this MLX could compute it early, and keep it until its turn comes.
        held = after(arguments, cotangents)
        traced = [held[index] for index in floating] + list(arrays)
        found = mx.vjp(of_floating(held), traced, cotangents)[1] if traced else []
        d_floating = found[: len(floating)]
        d_arrays = [mx.add(*pair) for pair in zip(found[len(floating) :], later, strict=True)]
        # Otherwise MLX could leave the second for later, and keep until then all that they read.
        d_floating = after(d_floating, d_arrays)
        d_arguments = [mx.zeros_like(array) for array in arguments]
        for index, array in zip(floating, d_floating, strict=True):
            d_arguments[index] = array
        return d_arguments, d_arrays, cotangents

    @gate.jvp
    def derivative(primals: Any, tangents: Any) -> Any:
        arguments, arrays, _ = primals
        traced = [arguments[index] for index in floating] + list(arrays)
        directions = [tangents[0][index] for index in floating] + list(tangents[1])
        directions = [
            mx.zeros_like(array) if direction is None else direction
            for array, direction in zip(traced, directions, strict=True)
        ]
        found = mx.jvp(of_floating(arguments), traced, directions)[1]
        return [*found, *directions[len(floating) :]]

    @gate.vmap
    def batched(primals: Any, axes: Any) -> Any:
        arguments, arrays, results = primals
        size = next(
            array.shape[axis]
            for group, where in zip(primals, axes, strict=True)
            for array, axis in zip(group, where, strict=True)
            if axis is not None
        )
        results = [
            mx.broadcast_to(array, (size, *array.shape))
            if axis is None
            else mx.moveaxis(array, axis, 0)
            for array, axis in zip(results, axes[2], strict=True)
        ]
        many = mx.vmap(again, in_axes=(axes[0], axes[1]), out_axes=0)
        axes_after = [*[0] * len(results), *axes[1]]
        return _gate(many, places, arguments, arrays, results, refused), axes_after

    return _list(gate(arguments, arrays, results))


def _inexact(array: mx.array) -> bool:
    return mx.issubdtype(array.dtype, mx.inexact)


def _list(arrays: Any) -> list[Any]:
    """What MLX hands over as one array if it is alone."""
    return list(arrays) if isinstance(arrays, (list, tuple)) else [arrays]

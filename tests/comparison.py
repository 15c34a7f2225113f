"""Values and every gradient of two things, compared to a stated tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

#: What rounding to a type changes a number by at most, relative to it.
ROUNDING = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}


def as_float64(array: mx.array | np.ndarray) -> np.ndarray:
    if isinstance(array, mx.array):
        array = array.astype(mx.float32)
    return np.array(array, dtype=np.float64)


def relative_error(got: mx.array | np.ndarray, expected: mx.array | np.ndarray) -> float:
    """Norm of the difference over the norm of what was expected."""
    got, expected = as_float64(got), as_float64(expected)
    assert got.shape == expected.shape
    with np.errstate(all="ignore"):  # of what is not finite
        return float(np.linalg.norm(got - expected) / (np.linalg.norm(expected) + 1e-300))


def wrong(
    found: Any, expected: Any, tolerance: float = 0.0, rounded: bool = False
) -> dict[str, float]:
    """Relative errors of arrays beyond the tolerance, by name; of another shape or type infinite.

    Args:
        found: A tree of arrays.
        expected: One with the same names. Types count where its arrays are MLX's.
        tolerance: The largest relative error of an array; without one they have to be equal.
        rounded: What was found may differ by one rounding to its own type besides.
    """
    found, expected = (dict(tree_flatten(tree)) for tree in (found, expected))
    assert found.keys() == expected.keys()
    errors = {}
    for name, array in expected.items():
        got = found[name]
        alike = got.shape == array.shape and (
            not isinstance(array, mx.array) or got.dtype == array.dtype
        )
        error = relative_error(got, array) if alike else math.inf
        if not error <= tolerance + rounded * ROUNDING.get(got.dtype, 0.0):  # NaN is wrong too
            errors[name] = error
    return errors


def assert_close(found: Any, expected: Any, tolerance: float = 0.0, rounded: bool = False) -> None:
    """Nothing is :func:`wrong`."""
    errors = wrong(found, expected, tolerance, rounded)
    assert errors == {}, errors


def weights_in_sum(number: int, shape: tuple[int, ...]) -> mx.array:
    """What :func:`values_and_gradients` multiplies the elements of array ``number`` by."""
    return mx.random.normal(shape, key=mx.random.key(number))


def values_and_gradients(
    module: nn.Module, run: Callable[..., Any], *arguments: Any
) -> tuple[Any, tuple[Any, ...]]:
    """What ``run(*arguments)`` gives, and the gradients of a weighted sum of all its elements.

    These are for what ``module`` trains and for each argument, in this order. The weights are
    the same at every call.
    """

    def loss(parameters, *arguments):
        module.update(parameters)
        values = run(*arguments)
        total = mx.array(0.0)
        for number, (_, array) in enumerate(tree_flatten(values)):
            total = total + (array.astype(mx.float32) * weights_in_sum(number, array.shape)).sum()
        return total, values

    before = module.parameters()
    differentiated = mx.value_and_grad(loss, argnums=tuple(range(1 + len(arguments))))
    (_, values), gradients = differentiated(module.trainable_parameters(), *arguments)
    module.update(before)
    return values, gradients


def slope(function: Callable[[Any], Any], at: Any, direction: Any, step: float = 1e-5) -> Any:
    """The central difference of ``function`` along a direction."""
    return (function(at + step * direction) - function(at - step * direction)) / (2 * step)


def central_differences(
    function: Callable[[dict[str, np.ndarray]], float], arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The :func:`slope` along every element: gradients that know nothing of derivatives."""
    found = {}
    for name, array in arrays.items():
        axes = np.eye(array.size).reshape(-1, *array.shape)
        slopes = [slope(lambda at: function(arrays | {name: at}), array, axis) for axis in axes]  # noqa: B023
        found[name] = np.reshape(slopes, array.shape)
    return found

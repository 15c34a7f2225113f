"""Values and every gradient of two things, compared to a stated tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten


def as_float64(array: mx.array | np.ndarray) -> np.ndarray:
    if isinstance(array, mx.array):
        array = array.astype(mx.float32)
    return np.array(array, dtype=np.float64)


def relative_error(got: mx.array | np.ndarray, expected: mx.array | np.ndarray) -> float:
    """Norm of the difference over the norm of what was expected."""
    got, expected = as_float64(got), as_float64(expected)
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / (np.linalg.norm(expected) + 1e-300))


def assert_close(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    """Two trees have the same names, and arrays of the same shapes and (MLX's) types.

    The relative error of each array is at most ``tolerance``; without one they are equal.
    """
    found, expected = (dict(tree_flatten(tree)) for tree in (found, expected))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if isinstance(array, mx.array):
            assert found[name].dtype == array.dtype, name
        assert relative_error(found[name], array) <= tolerance, name


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
            weights = mx.random.normal(array.shape, key=mx.random.key(number))
            total = total + (array.astype(mx.float32) * weights).sum()
        return total, values

    before = module.parameters()
    differentiated = mx.value_and_grad(loss, argnums=tuple(range(1 + len(arguments))))
    (_, values), gradients = differentiated(module.trainable_parameters(), *arguments)
    module.update(before)
    mx.eval(values, gradients)
    return values, gradients

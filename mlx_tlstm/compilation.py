"""A model's functions as graphs that MLX traces once for each shape, and then replays.

Replayed, a time step costs no Python, and element-wise operations in a row run as one: on a GPU a
kernel that MLX generates, on a CPU a loop that the machine's C++ compiler makes. Where there is no
compiler, MLX runs the plain function.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map


class CompiledFunction:
    """A function that uses a model's parameters, through ``mx.compile``.

    The parameters are inputs of the graph, so that new weights count from the next call on.

    On a CPU the first call with arguments of new shapes evaluates its results, since the compiler
    runs then. Where it fails, the plain function takes over for good, with a warning.

    Args:
        model: The model.
        function: Takes and returns trees of arrays. What else it takes is a constant: each new
            value makes a new graph.
    """

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        self._model = model
        self._function = function
        self._graph: Callable[..., Any] | None = mx.compile(self._with_parameters)
        self._compiled: set[str] = set()

    def __call__(self, *arguments: Any) -> Any:
        if self._graph is None:
            return self._function(*arguments)
        parameters = self._model.parameters()
        try:
            shapes = str(tree_map(_shape, arguments))
            if mx.default_device().type == mx.cpu and shapes not in self._compiled:
                return self._first_on_cpu(parameters, arguments, shapes)
            return self._graph(parameters, *arguments)
        finally:
            self._model.update(parameters)  # a trace leaves its own arrays there

    def _first_on_cpu(self, parameters: Any, arguments: tuple[Any, ...], shapes: str) -> Any:
        try:
            results = self._graph(parameters, *arguments)
            mx.eval(results)
        except RuntimeError as error:
            warnings.warn(
                f"MLX cannot compile for this CPU and goes on without, more slowly ({error}); "
                "MLX_DISABLE_COMPILE=1 turns compilation off",
                RuntimeWarning,
                stacklevel=3,
            )
            self._graph = None
            self._model.update(parameters)
            return self._function(*arguments)
        self._compiled.add(shapes)
        return results

    def _with_parameters(self, parameters: Any, *arguments: Any) -> Any:
        self._model.update(parameters)
        return self._function(*arguments)


def _shape(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, mx.array) else leaf

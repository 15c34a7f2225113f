"""Runs the graph that MLX traces of a function, its kernels on the CPU.

Where :mod:`metal_on_cpu.standin` has to evaluate what a kernel is given, here MLX's own
``mx.fast.metal_kernel`` puts its launches into a graph, without a value, as inside ``mx.compile``;
then each node of the graph is run::

    gradients = graph.run(mx.compile(gradient), weight, x)

MLX hands the graph out by ``mx.export_function``, which writes a compiled function's operations out
one by one: that ``mx.compile`` joins element-wise ones and shares equal ones is not seen here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from metal_on_cpu.dtypes import dtype_name
from metal_on_cpu.kernel import Kernel
from metal_on_cpu.source import Spec
from metal_on_cpu.standin import _plain

#: MLX's own, before any stand-in takes its place.
_real_metal_kernel = mx.fast.metal_kernel

#: Of MLX's reductions the sum, as its graphs number them.
_SUM = 2

#: By a node's name: from its arguments, inputs and first output's shape to its outputs.
_OPERATIONS: dict[str, Callable[[list, list[np.ndarray], tuple], list[np.ndarray]]] = {
    "Add": lambda _, inputs, shape: [inputs[0] + inputs[1]],
    "Broadcast": lambda _, inputs, shape: [np.broadcast_to(inputs[0], shape)],
    "Depends": lambda _, inputs, shape: inputs,
    "Full": lambda _, inputs, shape: [np.broadcast_to(inputs[0], shape)],
    "Reduce": lambda arguments, inputs, shape: [_sum(arguments, inputs[0])],
    "Reshape": lambda _, inputs, shape: [inputs[0].reshape(shape)],
    "Slice": lambda arguments, inputs, shape: [inputs[0][_slices(*arguments)]],
    "Squeeze": lambda _, inputs, shape: [inputs[0].reshape(shape)],
}


def _sum(arguments: list, array: np.ndarray) -> np.ndarray:
    kind, axes = arguments
    assert kind == _SUM
    return array.sum(axis=tuple(axes), keepdims=True)


def _slices(start: tuple, stop: tuple, strides: tuple) -> tuple[slice, ...]:
    return tuple(map(slice, start, stop, strides))


class _Recorded:
    """In the place of ``mx.fast.metal_kernel``'s objects: launches of MLX's own, remembered."""

    def __init__(self, known: dict[str, tuple[Kernel, list]], **definition: Any) -> None:
        self._known = known
        self._kernel = Kernel(**definition)
        self._real = _real_metal_kernel(**definition)

    def __call__(self, *, inputs: list, template: list, output_dtypes: list, **rest: Any) -> Any:
        arguments = [(name, _plain(value)) for name, value in template]
        specs = [Spec(array.shape, dtype_name(array.dtype)) for array in inputs]
        generated = self._kernel.mlx_source(specs, arguments, output_dtypes)
        self._known[generated.text] = (self._kernel, arguments)
        return self._real(inputs=inputs, template=template, output_dtypes=output_dtypes, **rest)


def run(
    function: Callable[..., list[mx.array]], *arrays: mx.array
) -> tuple[list[np.ndarray], list[str]]:
    """The function's results, in float32, and the kernels in the graph in their order.

    Args:
        function: From arrays to arrays. It may go through ``mx.compile`` and gradients of custom
            functions, whose own outputs no result may be made of: MLX exports no such node.
        arrays: Its arguments, in float32.

    Raises:
        KeyError: An operation is none of the few that time loops are made of.
    """
    known: dict[str, tuple[Kernel, list]] = {}
    nodes: list[dict] = []
    with (
        mock.patch.object(mx.fast, "metal_kernel", lambda **one: _Recorded(known, **one)),
        mock.patch.object(mx, "contiguous", lambda array: array),  # which MLX does not export
    ):
        mx.export_function(nodes.append, function, *arrays)
    values: dict[str, np.ndarray] = {}
    launched = []
    for node in nodes:
        if node["type"] == "inputs":
            names = [name for name, *_ in node["inputs"]]
            values |= zip(names, map(np.array, arrays), strict=True)
        elif node["type"] == "constants":
            values |= {name: np.array(array) for name, array in node["constants"]}
        elif node["type"] == "outputs":
            results = [name for name, *_ in node["outputs"]]
        elif node["type"] == "primitive":
            inputs = [values[name] for name, *_ in node["inputs"]]
            shapes = [shape for _, shape, _ in node["outputs"]]
            if node["name"] == "CustomKernel":
                _, text, *sizes = node["arguments"]
                kernel, template = known[text]
                launched.append(kernel.name)
                found = kernel(
                    inputs=inputs,
                    grid=tuple(sizes[:3]),
                    threadgroup=tuple(sizes[3:6]),
                    output_shapes=shapes,
                    output_dtypes=[dtype_name(dtype) for *_, dtype in node["outputs"]],
                    template=template,
                    mode="fast",
                )
            else:
                found = _OPERATIONS[node["name"]](node["arguments"], inputs, shapes[0])
            outputs = [name for name, *_ in node["outputs"]]
            values |= zip(outputs, found[: len(outputs)], strict=True)
    return [values[name] for name in results], launched

"""What one step of a cell and its gradient compute, as MLX writes it out: no array is evaluated."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_tlstm.layers.layer import Layer
from mlx_tlstm.models.arrays import filled
from mlx_tlstm.recurrence.graphs import VIEWS, Node, nodes
from mlx_tlstm.recurrence.snapshot import snapshot
from mlx_tlstm.recurrence.trees import arrays_of, with_arrays


def gradient_nodes(layer: Layer, rows: int, input_size: int) -> list[Node]:
    """The graph of the gradient of one step of a cell on ``rows`` sequences, in MLX's order.

    All inputs but the first, the step's, are cotangents. Nothing is computed. Where MLX cannot
    write the step out, as that of a custom function, there are none.
    """
    state = layer.initial_state(rows)
    x = mx.zeros((rows, input_size), layer.dtype)
    cell = snapshot(layer.cell)
    trained = cell.trainable_parameters()
    weights = dict(tree_flatten(trained))
    arrays = arrays_of(state, state)
    places = [i for i, array in enumerate(arrays) if mx.issubdtype(array.dtype, mx.floating)]

    def step(x: mx.array, *traced: mx.array) -> list[mx.array]:
        cell.update(filled(trained, dict(zip(weights, traced, strict=False))))
        before = list(arrays)
        for place, array in zip(places, traced[len(weights) :], strict=True):
            before[place] = array
        output, after = cell(x, with_arrays(state, before))
        after = arrays_of(after, state)
        return [output, *(after[place] for place in places)]

    def gradient(x: mx.array, *cotangents: mx.array) -> list[mx.array]:
        traced = [*weights.values(), *(arrays[place] for place in places)]
        return mx.vjp(lambda *traced: step(x, *traced), traced, list(cotangents))[1]

    floating = [arrays[place] for place in places]
    cotangents = [mx.zeros_like(array) for array in step(x, *weights.values(), *floating)]
    with contextlib.suppress(RuntimeError, ValueError):
        return nodes(gradient, x, *cotangents)
    return []


def made_and_kept(graph: Sequence[Node]) -> tuple[int, int]:
    """Bytes of all arrays of :func:`gradient_nodes`, and of those that the step keeps for it."""
    sizes: dict[str, int] = {}  # of each array that is no view
    sources: dict[str, str] = {}  # of views
    of_gradient: set[str] = set()
    kept: set[str] = set()
    for node in graph:
        if node["type"] == "inputs":
            of_gradient |= {name for name, *_ in node["inputs"][1:]}
        if node["type"] != "primitive":
            continue
        inputs = [name for name, *_ in node["inputs"]]
        if of_gradient.intersection(inputs):
            of_gradient |= {name for name, *_ in node["outputs"]}
            kept |= {sources.get(name, name) for name in inputs} - of_gradient
        for name, shape, dtype in node["outputs"]:
            if node["name"] in VIEWS:
                sources[name] = sources.get(inputs[0], inputs[0])
            else:
                sizes[name] = math.prod(shape) * dtype.size
    return sum(sizes.values()), sum(sizes.get(name, 0) for name in kept)

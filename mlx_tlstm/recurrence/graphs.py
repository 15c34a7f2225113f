"""What MLX would compute, read from its graphs: no array is evaluated."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx

#: An entry as ``mx.export_function`` gives it: inputs, outputs, constants, or a ``"primitive"``.
Node = Mapping[str, Any]
#: Primitives that compute nothing: views of an array in another shape.
VIEWS = {
    "AsStrided",
    "Broadcast",
    "CustomTransforms",
    "ExpandDims",
    "Flatten",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "StopGradient",
    "Transpose",
    "Unflatten",
}


def nodes(function: Callable[..., Any], *arrays: mx.array) -> list[Node]:
    """The graph of a function of arrays, in MLX's order.

    Raises:
        RuntimeError: MLX cannot write it out, as that of a ``mx.custom_function``; or a
            ``ValueError``.
    """
    found: list[Node] = []
    mx.export_function(found.append, function, *arrays)
    return found


def operations(arrays: Sequence[mx.array]) -> int:
    """Operations that compute ``arrays``, which are not evaluated yet, without views.

    Read from a drawing of the graph, which may hold what :func:`nodes` cannot, but has no shapes.
    """
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    names = re.findall(r'label ="([^"]*)", shape=rectangle', graph.getvalue())
    return sum(name not in VIEWS for name in names)

"""Compiles functions of a model with ``mx.compile``.

MLX runs the function once for each new shape of its arguments and records the operations as a
graph. Later calls run the graph: no Python runs for a time step, and element-wise operations that
follow each other run as one, on a GPU as a kernel that MLX writes, on a CPU as a loop that the
machine's C++ compiler translates. On a CPU without a compiler the function runs as it is.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from mlx_tlstm.recurrence.random_state import current_key, random_key, set_key
from mlx_tlstm.recurrence.snapshot import kept_arrays, parts, rebuilt, snapshot

#: Time steps up to which a graph pays. Tracing 1,000 of them takes some five seconds and 5,000 ten
#: times as long, while the plain function's cost grows with the number of steps alone.
GRAPH_STEPS = 1000

#: Takes a model's arrays and the other arguments.
_Function = Callable[..., Any]


class _Graph(NamedTuple):
    plain: _Function
    compiled: _Function


class CompiledFunction:
    """A function of a model and other arguments, compiled.

    The model's arrays are inputs of the graph, so that new weights count from the next call on.
    Everything else in the model is constant in the graph; when it changes (the mode, a module, a
    setting, what is frozen), the next call records a new graph. While recording, MLX puts
    placeholders into the model's arrays; this happens to a copy, so that the model stays usable and
    several threads may call the function at once. MLX records a graph for each thread.

    Random numbers are new in each call: the key of ``mx.random`` is an input of the graph, and goes
    on as if the function had run uncompiled. Where it draws none, the key stays.

    On a CPU the first call with arguments of new shapes evaluates its results, since that is when
    the C++ compiler runs. If it fails, there is a warning, and from then on the function runs
    uncompiled.

    Args:
        model: The model.
        function: Takes a model, which is a copy, and trees of arrays; returns a tree of arrays.
            What else it takes is a constant: each new value makes a new graph. It leaves the
            copy's arrays in their places: ``nn.value_and_grad`` needs one of its own.

    Raises:
        ValueError: In a call: ``function`` replaces arrays of the model, or reads values of arrays
            while MLX records.
    """

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        self._model = model
        self._function = function
        self._graphs: dict[Hashable, _Graph] = {}
        self._compiled: set[Hashable] = set()
        self._compiles = True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_graphs": {}, "_compiled": set()}  # which another process makes

    def plain(self, *arguments: Any) -> Any:
        """The result of a call, computed without a compiled graph."""
        graph, arrays = self._graph()
        return graph.plain(arrays, *arguments)

    def __call__(self, *arguments: Any) -> Any:
        graph, arrays = self._graph()
        if not self._compiles:
            return graph.plain(arrays, *arguments)
        if mx.default_device().type == mx.cpu:
            shapes = str(tree_map(_shape, arguments))
            if shapes not in self._compiled:
                return self._first_on_cpu(graph, arrays, arguments, shapes)
        return graph.compiled(arrays, *arguments)

    def _graph(self) -> tuple[_Graph, list[mx.array]]:
        """The graph for what the model is made of now, and its arrays."""
        arrays, rest = parts(self._model)
        while (graph := self._graphs.get(rest)) is None:
            model, before = snapshot(self._model), rest
            arrays, rest = parts(self._model)
            if rest == before:  # no other thread has changed the model meanwhile
                graph = self._graphs.setdefault(rest, _graph(model, self._function))
        return graph, arrays

    def _first_on_cpu(
        self, graph: _Graph, arrays: list[mx.array], arguments: tuple[Any, ...], shapes: Hashable
    ) -> Any:
        key = current_key()
        try:
            results = graph.compiled(arrays, *arguments)
            mx.eval(results)
        except RuntimeError as error:
            set_key(key)
            results = graph.plain(arrays, *arguments)
            mx.eval(results)  # fails too where the compiler is not to blame
            warnings.warn(
                f"MLX cannot compile for this CPU and goes on without, more slowly ({error}); "
                "MLX_DISABLE_COMPILE=1 turns compilation off",
                RuntimeWarning,
                stacklevel=3,
            )
            self._compiles = False
            return results
        self._compiled.add(shapes)
        return results


@contextlib.contextmanager
def traceable(owner: str) -> Iterator[None]:
    """Say what MLX means where a model that it traces within asks for an array's values."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(("[eval]", "[async_eval]")):
            raise
        raise ValueError(
            f"[{owner}] 'model' must compute without reading an array's values (item, float, if, "
            f"NumPy), since it is compiled, but MLX says: {error} MLX_DISABLE_COMPILE=1 runs it as "
            "it is"
        ) from error


def _graph(model: nn.Module, function: Callable[..., Any]) -> _Graph:
    # Keeps alive what the graph is known by, and weights only if a function is bound to theirs.
    none = mx.array(0.0)
    template = rebuilt(model, lambda _: none)
    barren: dict[int, Any] = {}

    def plain(arrays: list[mx.array], *arguments: Any) -> Any:
        remaining = iter(arrays)
        copy = rebuilt(template, lambda _: next(remaining), barren)
        with kept_arrays(copy):
            return function(copy, *arguments)

    draws = False

    def traced(key: mx.array, arrays: list[mx.array], *arguments: Any) -> tuple[Any, mx.array]:
        nonlocal draws
        with random_key(key):
            state = mx.random.state[0]
            results = plain(arrays, *arguments)
            draws = draws or mx.random.state[0] is not state
            return results, current_key()

    replayed = mx.compile(traced)

    def compiled(arrays: list[mx.array], *arguments: Any) -> Any:
        with traceable(type(template).__name__):
            results, key = replayed(mx.random.state[0], arrays, *arguments)
        if draws:
            set_key(key)
        return results

    return _Graph(plain, compiled)


def _shape(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, mx.array) else leaf

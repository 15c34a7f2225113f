"""The arrays that a Python function reads beside its arguments, found and replaced."""

from __future__ import annotations

import contextlib
import gc
import operator
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx

#: What is not looked into.
_CLOSED = (types.ModuleType, types.FrameType, types.CodeType, str, bytes, int, float)
#: Python's own modules, MLX's, and pytest's, which are in reach of every function whose ``assert``
#: it rewrites: their classes and globals hold nobody's weights.
_LIBRARIES = sys.stdlib_module_names | {"mlx", "_pytest"}


def handle(array: mx.array) -> mx.array:
    """Another Python object for the same array, which stays when the first is written to."""
    return array.astype(array.dtype)


class Search:
    """Finds the floating-point arrays that can be reached from a function, each object once.

    It looks into closures, default values, attributes, the globals that the code names, the objects
    of bound methods, modules, containers and classes, and so on from there, in an order that stays.

    Attributes:
        function: As given.
        arrays: What it found at first.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        #: Objects that led to no array at first, by id, which no other gets while they are held.
        self._barren: dict[int, Any] = {}
        seen: dict[int, Any] = {}
        parents: dict[int, int] = {}
        self.arrays = self._search(seen, parents)
        fruitful: set[int] = set()
        for array in self.arrays:
            node: int | None = id(array)
            while node is not None and node not in fruitful:
                fruitful.add(node)
                node = parents.get(node)
        self._barren = {node: value for node, value in seen.items() if node not in fruitful}

    def again(self) -> list[mx.array]:
        """The arrays that are in the same places now."""
        return self._search({}, {})

    def _search(self, seen: dict[int, Any], parents: dict[int, int]) -> list[mx.array]:
        found, pending = [], [(None, self.function)]
        while pending:
            parent, value = pending.pop()
            node = id(value)
            if node in seen or node in self._barren or isinstance(value, _CLOSED):
                continue
            seen[node] = value
            if parent is not None:
                parents[node] = parent
            if not isinstance(value, mx.array):
                pending += [(node, child) for child in _children(value)]
            elif mx.issubdtype(value.dtype, mx.inexact):
                found.append(value)
        return found


def _children(value: Any) -> Sequence[Any]:
    """The objects that an object refers to and that may lead to a user's arrays."""
    if isinstance(value, types.FunctionType):
        own = [value.__closure__, value.__defaults__, value.__kwdefaults__, vars(value)]
        return own if _is_library(value) else own + _named_globals(value)
    if isinstance(value, type):
        return [] if _is_library(value) else [*vars(value).values(), *value.__bases__]
    return gc.get_referents(value)


def _is_library(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] in _LIBRARIES


def _named_globals(function: types.FunctionType) -> list[Any]:
    """What the names in a function's code mean as globals, and as attributes of Python modules."""
    names = dict.fromkeys(_names(function.__code__))
    spaces, values = [function.__globals__], []
    for space in spaces:  # grows
        for value in (space[name] for name in names if name in space):
            if not isinstance(value, types.ModuleType):
                values.append(value)
            elif value is not sys and not any(vars(value) is other for other in spaces):
                spaces.append(vars(value))
    return values


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


class CapturedArrays:
    """Floating-point arrays that a function reads beside its arguments.

    Args:
        owner: Begins the errors.
        name: Names the function in errors.
        function: The function.

    Attributes:
        arrays: As they are now. The objects may be written to later.
    """

    def __init__(self, owner: str, name: str, function: Callable[..., Any]) -> None:
        self._owner, self._name = owner, name
        self._search = Search(function)
        self._indices = list(range(len(self._search.arrays)))
        self.arrays = [handle(array) for array in self._search.arrays]

    def keep(self, indices: Sequence[int]) -> None:
        """Forget all but these of :attr:`arrays`."""
        self.arrays = [self.arrays[index] for index in indices]
        self._indices = [self._indices[index] for index in indices]

    def require_unchanged(self) -> None:
        """Raise ``ValueError`` if there are other array objects now, in their places or beside."""
        now, before = Search(self._search.function).arrays, self._search.arrays
        self._require(len(now) == len(before) and all(map(operator.is_, now, before)))

    @contextlib.contextmanager
    def replaced(self, arrays: Sequence[mx.array]) -> Iterator[None]:
        """Let the function read these in place of :attr:`arrays`, in the same order.

        They are written into the array objects that the function reads now: the gradient is formed
        after the call, and a model may hold other objects by then.
        """
        now, before = self._search.again(), self._search.arrays
        self._require([(a.shape, a.dtype) for a in now] == [(a.shape, a.dtype) for a in before])
        objects = [now[index] for index in self._indices]
        own = [handle(array) for array in objects]
        try:
            for current, array in zip(objects, arrays, strict=True):
                current[...] = array
            yield
        finally:
            for current, array in zip(objects, own, strict=True):
                current[...] = array

    def _require(self, same: bool) -> None:
        if not same:
            raise ValueError(
                f"[{self._owner}] '{self._name}' must leave the arrays that it reads besides where "
                "they are, with 'checkpoint', since its gradient reads them again; but others are "
                "in their places, or beside them"
            )

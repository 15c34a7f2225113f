"""Private copies of a model, so that several threads can use it at once.

While MLX traces a function it puts placeholders into the model's modules, and training puts new
weights there. Who works on a copy disturbs no other thread. A copy shares the model's arrays, which
never change, so that it takes almost no memory. Functions that are bound to modules of the model
are bound to their copies there (:mod:`mlx_tlstm.recurrence.binding`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm.checks import require
from mlx_tlstm.recurrence.binding import bind_to_copies

AnyModule = TypeVar("AnyModule", bound=nn.Module)

#: Held for the microseconds in which weights are read or replaced: whoever reads them in another
#: thread gets those of one training step.
_WEIGHTS = threading.Lock()

#: Marks the end of a module or container in :attr:`Parts.rest`.
_END = object()


class Parts(NamedTuple):
    """What a model is made of.

    Attributes:
        arrays: Its arrays, parameters and others, in the order of the tree.
        rest: Everything else: types, names, modes, settings and what is frozen. It compares as
            equal as long as none of that changes. Other objects are compared by identity, so that
            a change inside one is not seen; they are kept alive.
    """

    arrays: list[mx.array]
    rest: tuple[Hashable, ...]


def parts(model: nn.Module) -> Parts:
    """The :class:`Parts` of a model as it is now."""
    arrays: list[mx.array] = []
    rest: list[Hashable] = []
    with _WEIGHTS:
        _collect(model, arrays, rest, {})
    return Parts(arrays, tuple(rest))


def snapshot(model: AnyModule) -> AnyModule:
    """A copy of a model with the same arrays; giving it other weights leaves ``model`` as it is."""
    with _WEIGHTS:
        return rebuilt(model, lambda array: array)


@contextlib.contextmanager
def kept_arrays(copy: nn.Module) -> Iterator[None]:
    """Raise ``ValueError`` if a copy's arrays are replaced within, which nobody would ever see.

    An array may be added, which the next copy makes again.
    """
    before = _own_arrays(copy)
    yield
    after = _own_arrays(copy)
    replaced = [name for name, array in before.items() if after.get(name) is not array]
    expected = "one whose steps replace none of its arrays: a copy runs (keep them in the state),"
    require(not replaced, type(copy).__name__, "model", expected, replaced)


def require_evaluated(owner: str, model: nn.Module) -> None:
    """Evaluate a model's arrays, so that any thread can read them.

    Raises:
        ValueError: Another thread built some of them and has not evaluated them, and MLX lets no
            other thread do it. The message begins with ``owner``.
    """
    try:
        mx.eval(parts(model).arrays)
    except RuntimeError as error:
        if "in current thread" not in str(error):
            raise
        expected = "evaluated (mx.eval(model.parameters())) by the thread that built it"
        raise ValueError(f"[{owner}] 'model' must be {expected} but MLX says: {error}") from error


def replace_weights(model: nn.Module, weights: Any) -> None:
    """Put weights, evaluated and in the form of ``model.parameters()``, into a model in use."""
    with _WEIGHTS:
        model.update(weights)


def rebuilt(
    model: AnyModule,
    array_for: Callable[[mx.array], mx.array],
    barren: dict[int, Any] | None = None,
) -> AnyModule:
    """A copy of the module tree in which ``array_for`` replaces each array, in the tree's order.

    ``barren`` is :func:`bind_to_copies`'s, for whoever makes many copies.
    """
    copies: dict[int, nn.Module] = {}
    copy = _rebuilt(model, array_for, copies)
    bind_to_copies(copies, {} if barren is None else barren)
    return copy


def _own_arrays(model: nn.Module) -> dict[str, mx.array]:
    """All arrays of the module tree, parameters and others, by name."""
    return {name: leaf for name, leaf in tree_flatten(model) if isinstance(leaf, mx.array)}


def _collect(
    node: Any, arrays: list[mx.array], rest: list[Hashable], modules: dict[int, int]
) -> None:
    kind = type(node)
    if kind is mx.array:
        arrays.append(node)
        rest.append(mx.array)
    elif issubclass(kind, nn.Module):
        if id(node) in modules:  # in two places of the tree
            rest.append(modules[id(node)])
            return
        modules[id(node)] = len(modules)
        rest.append(kind)
        for name, value in list(node.__dict__.items()):
            rest += (name, _constant(value))
        for name, value in list(node.items()):
            rest.append(name)
            _collect(value, arrays, rest, modules)
        rest.append(_END)
    elif issubclass(kind, dict):
        rest.append(kind)
        for name, value in list(node.items()):
            rest.append(name)
            _collect(value, arrays, rest, modules)
        rest.append(_END)
    elif issubclass(kind, (list, tuple)):
        rest.append(kind)
        for value in list(node):
            _collect(value, arrays, rest, modules)
        rest.append(_END)
    else:
        rest.append(_constant(node))


def _constant(value: Any) -> Hashable:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return frozenset(value) if isinstance(value, set) else _Same(value)


class _Same:
    """Equal to what was made of the same object."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value


def _rebuilt(
    node: Any, array_for: Callable[[mx.array], mx.array], copies: dict[int, nn.Module]
) -> Any:
    kind = type(node)  # isinstance believes what mx.compile makes of a module
    if kind is mx.array:
        return array_for(node)
    if issubclass(kind, nn.Module):
        if id(node) not in copies:
            copy = copies[id(node)] = type(node).__new__(type(node))
            for name, value in list(node.__dict__.items()):
                copy.__dict__[name] = set(value) if isinstance(value, set) else value
            for name, value in list(node.items()):
                dict.__setitem__(copy, name, _rebuilt(value, array_for, copies))
        return copies[id(node)]
    if issubclass(kind, dict):
        return {name: _rebuilt(value, array_for, copies) for name, value in list(node.items())}
    if issubclass(kind, (list, tuple)):
        values = [_rebuilt(value, array_for, copies) for value in list(node)]
        return type(node)._make(values) if hasattr(node, "_make") else type(node)(values)
    return node

"""Private copies of a model, so that several threads can use it at once.

While MLX traces a function it puts placeholders into the model's modules, and training puts new
weights there. Who works on a copy disturbs no other thread. A copy shares the model's arrays, which
never change, so that it takes almost no memory. A function that a module holds and that is bound to
modules of the model, such as a method, a ``partial`` or a lambda, is bound to their copies there.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm.checks import require

AnyModule = TypeVar("AnyModule", bound=nn.Module)

#: Held for the microseconds in which weights are read or replaced: whoever reads them in another
#: thread gets those of one training step.
_WEIGHTS = threading.Lock()

#: What leads to no module.
_PLAIN = (mx.array, str, int, float, set, type(None))

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


def rebuilt(model: AnyModule, array_for: Callable[[mx.array], mx.array]) -> AnyModule:
    """A copy of the module tree in which ``array_for`` replaces each array, in the tree's order."""
    copies: dict[int, Any] = {}
    copy = _rebuilt(model, array_for, copies)
    for module in list(copies.values()):  # when all have a copy
        for name, value in [*module.__dict__.items(), *module.items()]:
            if isinstance(value, _PLAIN):
                continue
            try:
                own = _rebound(value, copies)
            except _NotCopied as error:
                held = error.args[0]
                expected = "of modules, functions, lists and dictionaries, where it leads to the "
                expected += "model's modules: a copy of the model runs,"
                require(False, type(module).__name__, name, expected, held)
            if name in module.__dict__:
                module.__dict__[name] = own
            else:
                dict.__setitem__(module, name, own)
    return copy


def _own_arrays(model: nn.Module) -> dict[str, mx.array]:
    """All arrays of the module tree, parameters and others, by name."""
    return {name: leaf for name, leaf in tree_flatten(model) if isinstance(leaf, mx.array)}


def _collect(
    node: Any, arrays: list[mx.array], rest: list[Hashable], modules: dict[int, int]
) -> None:
    if isinstance(node, mx.array):
        arrays.append(node)
        rest.append(mx.array)
    elif isinstance(node, nn.Module):
        if id(node) in modules:  # in two places of the tree
            rest.append(modules[id(node)])
            return
        modules[id(node)] = len(modules)
        rest.append(type(node))
        for name, value in list(node.__dict__.items()):
            rest += (name, _constant(value))
        for name, value in list(node.items()):
            rest.append(name)
            _collect(value, arrays, rest, modules)
        rest.append(_END)
    elif isinstance(node, dict):
        rest.append(type(node))
        for name, value in list(node.items()):
            rest.append(name)
            _collect(value, arrays, rest, modules)
        rest.append(_END)
    elif isinstance(node, (list, tuple)):
        rest.append(type(node))
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


def _rebuilt(node: Any, array_for: Callable[[mx.array], mx.array], copies: dict[int, Any]) -> Any:
    if isinstance(node, mx.array):
        return array_for(node)
    if isinstance(node, nn.Module):
        if id(node) not in copies:
            copy = copies[id(node)] = type(node).__new__(type(node))
            for name, value in list(node.__dict__.items()):
                copy.__dict__[name] = set(value) if isinstance(value, set) else value
            for name, value in list(node.items()):
                dict.__setitem__(copy, name, _rebuilt(value, array_for, copies))
        return copies[id(node)]
    if isinstance(node, dict):
        return {name: _rebuilt(value, array_for, copies) for name, value in list(node.items())}
    if isinstance(node, (list, tuple)):
        values = [_rebuilt(value, array_for, copies) for value in list(node)]
        return type(node)._make(values) if hasattr(node, "_make") else type(node)(values)
    return node


class _NotCopied(Exception):  # noqa: N818 (carries the object)
    """An object of the user's that leads to a module, and of which no copy can be made."""


def _rebound(value: Any, copies: dict[int, Any]) -> Any:
    """A function, or a container of some, bound to the copies of the modules it is bound to."""
    if id(value) in copies or not _leads_to(copies, value, set()):
        return copies.get(id(value), value)

    def own(values: Iterable[Any]) -> list[Any]:
        return [_rebound(one, copies) for one in values]

    if isinstance(value, dict):
        return dict(zip(value, own(value.values()), strict=True))
    if isinstance(value, (list, tuple)):
        return type(value)._make(own(value)) if hasattr(value, "_make") else type(value)(own(value))
    if isinstance(value, types.MethodType):
        return types.MethodType(*own((value.__func__, value.__self__)))
    if isinstance(value, functools.partial):
        keywords = dict(zip(value.keywords, own(value.keywords.values()), strict=True))
        return type(value)(*own((value.func, *value.args)), **keywords)
    if not isinstance(value, types.FunctionType):
        raise _NotCopied(value)
    # So says what mx.compile makes, too, in whose place is what it was made of.
    cells = tuple(types.CellType() for _ in value.__closure__ or ())
    copy = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
    copies[id(value)] = copy  # its closure may hold the function itself
    for cell, before in zip(cells, value.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty one
            cell.cell_contents = _rebound(before.cell_contents, copies)
    copy.__defaults__ = _rebound(value.__defaults__, copies)
    copy.__kwdefaults__ = _rebound(value.__kwdefaults__, copies)
    copy.__dict__.update(value.__dict__)
    return copy


def _leads_to(copies: dict[int, Any], value: Any, seen: set[int]) -> bool:
    """Whether an object holds, or is bound to, one that has a copy."""
    if id(value) in seen:
        return False
    seen.add(id(value))
    return id(value) in copies or any(_leads_to(copies, one, seen) for one in _held(value))


def _held(value: Any) -> Iterable[Any]:
    """What a container or an object holds, or a function is bound to; nothing of a module."""
    if isinstance(value, (nn.Module, type, types.ModuleType)):
        return ()
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, types.MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if not isinstance(value, types.FunctionType):
        return list(getattr(value, "__dict__", {}).values())
    found = [value.__defaults__, value.__kwdefaults__]
    for cell in value.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            found.append(cell.cell_contents)
    return found

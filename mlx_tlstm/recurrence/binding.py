"""Functions that a model's modules hold, bound to the copies of the modules they are bound to.

Such are a method that a constructor chose, a lambda and a ``partial``. In a copy of the model they
would otherwise read weights and modes of the model itself.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import types
from collections.abc import Iterable
from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_tlstm.checks import require

#: What leads to no module.
_PLAIN = (mx.array, str, bytes, int, float, set, type, types.ModuleType, type(None))

_CONTAINERS = (dict, list, tuple)


def bind_to_copies(copies: dict[int, nn.Module], barren: dict[int, Any]) -> None:
    """Bind what the copies of a model's modules hold to the copies.

    Args:
        copies: By the id of the module that each is a copy of.
        barren: Objects, by id, that lead to none of these modules; it gets those that are found.

    Raises:
        ValueError: A module holds an object that leads to the model's modules and that cannot be
            made anew, so that it would use those that the model has.
    """
    binding = _Binding(copies, barren)
    for module in copies.values():
        for name, value in [*module.__dict__.items(), *module.items()]:
            try:
                own = binding.bound(value)
            except _NotMadeAnewError as error:
                held = error.args[0]
                expected = "of Python functions, lists and dictionaries, where it leads to modules "
                expected += "of the model (a copy of it runs),"
                require(False, type(module).__name__, name, expected, held)
            if own is value:
                continue
            if name in module.__dict__:
                module.__dict__[name] = own
            else:
                dict.__setitem__(module, name, own)


class _NotMadeAnewError(Exception):
    """Carries the object."""


class _Binding:
    """See :func:`bind_to_copies`."""

    def __init__(self, copies: dict[int, nn.Module], barren: dict[int, Any]) -> None:
        self._made: dict[int, Any] = dict(copies)  # functions and containers too
        self._copies = {id(copy) for copy in copies.values()}
        self._barren = barren
        self._alive: list[Any] = []  # whose ids are known, so that no other object gets one

    def bound(self, value: Any) -> Any:
        """An object, made anew if it leads to a module that has a copy."""
        if id(value) in self._made or not self._leads_to_a_module(value):
            return self._made.get(id(value), value)
        self._alive.append(value)
        kind = type(value)  # isinstance believes what mx.compile, mx.vmap and mx.grad make
        if kind is dict:
            self._made[id(value)] = made = {}
            made.update(zip(value, self._all(list(value.values())), strict=True))
        elif kind is list:
            self._made[id(value)] = made = []
            made += self._all(value)
        elif issubclass(kind, tuple):
            made = (
                kind._make(self._all(value)) if hasattr(kind, "_make") else kind(self._all(value))
            )
        elif kind is types.MethodType:
            made = types.MethodType(*self._all((value.__func__, value.__self__)))
        elif kind is functools.partial:
            keywords = dict(zip(value.keywords, self._all(value.keywords.values()), strict=True))
            made = functools.partial(*self._all((value.func, *value.args)), **keywords)
        elif kind is types.FunctionType:
            made = self._function(value)
        else:
            raise _NotMadeAnewError(value)
        self._made[id(value)] = made
        return made

    def _all(self, values: Iterable[Any]) -> list[Any]:
        return [self.bound(value) for value in values]

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        code, space, name = function.__code__, function.__globals__, function.__name__
        self._made[id(function)] = made = types.FunctionType(code, space, name, None, cells)
        for cell, before in zip(cells, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty one
                cell.cell_contents = self.bound(before.cell_contents)
        made.__defaults__ = self.bound(function.__defaults__)
        made.__kwdefaults__ = self.bound(function.__kwdefaults__)
        made.__dict__.update(self.bound(function.__dict__))
        return made

    def _leads_to_a_module(self, value: Any) -> bool:
        seen: dict[int, Any] = {}
        pending = [value]
        while pending:
            one = pending.pop()
            node = id(one)
            if node in self._made:
                return True
            if issubclass(type(one), _PLAIN) or node in self._copies:
                continue
            if node not in seen and node not in self._barren:
                seen[node] = one
                pending += _held(one)
        # Containers belong to one copy, or to an object that is remembered itself.
        kept = {node: one for node, one in seen.items() if not isinstance(one, _CONTAINERS)}
        self._barren.update(kept)
        return False


def _held(value: Any) -> Iterable[Any]:
    """What an object holds, or a function is bound to."""
    kind = type(value)
    if issubclass(kind, dict):
        return [*value.values(), *getattr(value, "__dict__", {}).values()]
    if kind is not types.FunctionType:
        return gc.get_referents(value)
    found = [value.__defaults__, value.__kwdefaults__, value.__dict__]
    for cell in value.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            found.append(cell.cell_contents)
    return found

"""Trees of arrays: arrays in tuples, named tuples, lists and dictionaries, also inside each other.

``None`` stands for no array, and so does an empty container. Errors name an array by its path from
the root, as in ``state.memory[0]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from mlx_tlstm.checks import require


def named_arrays(owner: str, name: str, tree: Any) -> list[tuple[str, mx.array]]:
    """The arrays of a tree with their paths; ``ValueError`` where something else is in it."""
    if tree is None:
        return []
    if _is_container(tree):
        parts = ((name + step, tree[key]) for key, step in _keys(tree))
        return [pair for path, part in parts for pair in named_arrays(owner, path, part)]
    expected = "an mx.array, None, or a tuple, list or dict of them,"
    require(isinstance(tree, mx.array), owner, name, expected, tree)
    return [(name, tree)]


def by_name(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree by their paths without its root, as in ``memory[0]``.

    Raises:
        ValueError: Two have the same path, as under the keys ``"a.b"`` and ``"a"``, ``"b"``.
    """
    pairs = named_arrays("by_name", "", tree)
    found = {name.removeprefix("."): array for name, array in pairs}
    expected = "of arrays whose paths differ: no key with a dot that stands for two keys,"
    require(len(found) == len(pairs), "by_name", "state", expected, [name for name, _ in pairs])
    return found


def arrays_of(tree: Any, like: Any) -> list[mx.array]:
    """The arrays of a tree in the order of ``like``, a tree of the same form."""
    if not isinstance(like, (tuple, list, dict)):
        return [] if like is None else [tree]
    keys = like if isinstance(like, dict) else range(len(like))
    return [array for key in keys for array in arrays_of(tree[key], like[key])]


def with_arrays(like: Any, arrays: Iterable[mx.array]) -> Any:
    """A tree of the form of ``like`` that holds these arrays, in its order."""
    return _filled(like, iter(arrays))


def distinct(tree: Any) -> tuple[list[mx.array], Callable[[Sequence[mx.array]], Any]]:
    """The arrays of a tree, each object once, and what makes such a tree of others in their order.

    One array may stand in thousands of places, which MLX would trace one by one.
    """
    places = [id(array) for array in arrays_of(tree, tree)]
    once = dict(zip(places, arrays_of(tree, tree), strict=True))

    def with_others(arrays: Sequence[mx.array]) -> Any:
        others = dict(zip(once, arrays, strict=True))
        return with_arrays(tree, [others[place] for place in places])

    return list(once.values()), with_others


def of_rows(tree: Any, rows: slice) -> Any:
    """A state of some sequences of a batch; a number belongs to all of them."""
    return tree_map(lambda part: part if part is None or not part.ndim else part[rows], tree)


def require_same_form(owner: str, name: str, tree: Any, like: Any, why: str) -> None:
    """Raise ``ValueError`` unless ``tree`` has the containers, shapes and types of ``like``.

    ``why`` follows in the message what is expected.
    """
    if _same_form(tree, like):  # a glance, without the texts
        return
    if isinstance(like, mx.array):
        same = isinstance(tree, mx.array) and (tree.shape, tree.dtype) == (like.shape, like.dtype)
        require(same, owner, name, f"of shape {like.shape} and type {like.dtype} {why}", tree)
    elif like is None:
        require(tree is None, owner, name, f"None {why}", tree)
    else:
        kind, keys = type(like).__name__, [key for key, _ in _keys(like)]
        require(type(tree) is type(like), owner, name, f"a {kind} {why}", tree)
        if isinstance(like, dict):
            expected = f"a {kind} with the keys {keys} {why}"
            require(tree.keys() == like.keys(), owner, name, expected, list(tree))
        expected = f"a {kind} of length {len(keys)} {why}"
        require(len(tree) == len(like), owner, name, expected, tree)
        for key, step in _keys(like):
            require_same_form(owner, name + step, tree[key], like[key], why)


def _filled(like: Any, arrays: Iterator[mx.array]) -> Any:
    if isinstance(like, dict):
        return {key: _filled(part, arrays) for key, part in like.items()}
    if isinstance(like, (tuple, list)):
        parts = [_filled(part, arrays) for part in like]
        return type(like)(*parts) if _is_named(like) else type(like)(parts)
    return None if like is None else next(arrays)


def _same_form(tree: Any, like: Any) -> bool:
    if isinstance(like, mx.array):
        same = isinstance(tree, mx.array) and tree.shape == like.shape
        return same and tree.dtype == like.dtype
    if like is None or type(tree) is not type(like) or len(tree) != len(like):
        return tree is like
    if not isinstance(like, dict):
        return all(map(_same_form, tree, like))
    return tree.keys() == like.keys() and all(_same_form(tree[key], like[key]) for key in like)


def _is_container(tree: Any) -> bool:
    return type(tree) in (dict, list, tuple) or _is_named(tree)


def _is_named(tree: Any) -> bool:
    return isinstance(tree, tuple) and hasattr(tree, "_fields")


def _keys(tree: Any) -> list[tuple[Any, str]]:
    """The keys of a container, and how each reads in a path."""
    if isinstance(tree, dict):
        return [(key, f".{key}" if isinstance(key, str) else f"[{key!r}]") for key in tree]
    if _is_named(tree):
        return [(index, f".{name}") for index, name in enumerate(tree._fields)]
    return [(index, f"[{index}]") for index in range(len(tree))]

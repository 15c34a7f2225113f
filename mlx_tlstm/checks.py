"""Argument checks that name the argument, what was expected and what came."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Collection, Iterable, Mapping, Set
from typing import Any

#: Characters of a value that an error shows; a path has fewer as a rule.
_SHOWN = 500


class _Representation(reprlib.Repr):
    """``repr`` of any value in bounded time and length."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 12
        self.maxstring = self.maxlong = self.maxother = _SHOWN

    def repr1(self, x: Any, level: int) -> str:
        shape = getattr(x, "shape", None)
        if isinstance(shape, tuple) and shape and hasattr(x, "dtype"):
            name = f"{type(x).__module__.partition('.')[0]} {type(x).__name__}"
            return f"{name} of shape {tuple(shape)} and type {x.dtype}"
        if isinstance(x, (str, bytes, bytearray)):
            # Cut before it is escaped: a text may be of any size.
            x = x if len(x) <= _SHOWN else x[: _SHOWN // 2] + x[-_SHOWN // 2 :]
            return shortened(repr(x))
        if shape is not None:  # reprlib takes MLX's for an array.array, by its name
            return self.repr_instance(x, level)
        return super().repr1(x, level)

    def repr_int(self, x: int, level: int) -> str:
        try:
            return repr(x)
        except ValueError:  # Python refuses to write out more than some thousand digits
            return f"an integer of {x.bit_length()} bits"


_representation = _Representation()


def shortened(text: str, limit: int = _SHOWN) -> str:
    """``text`` without the middle of what is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} ... {text[len(text) - limit // 2 :]}"


def shown(value: object) -> str:
    """``repr(value)`` as errors show it: the middle of what is long is left out.

    Of an array it is the shape and type.
    """
    return shortened(_representation.repr(value))


def require(condition: bool, owner: str, argument: str, expected: str, value: object) -> None:
    """Raise ``ValueError`` unless ``condition`` holds.

    The message reads ``[owner] 'argument' must be expected but got value``; see :func:`shown`.
    """
    if not condition:
        argument, expected = shortened(argument), shortened(expected)
        raise ValueError(f"[{owner}] '{argument}' must be {expected} but got {shown(value)}")


def plain(value: Any) -> Any:
    """The Python bool, integer or float that a scalar of NumPy, MLX or the like stands for.

    A float keeps its value: ``np.float32(1e-3)`` is 0.0010000000474974513. Everything else comes
    back as it is; a string is no number, nor is an array with an axis.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, (bool, str, bytes)) or getattr(value, "shape", ()) != ():
        return value
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        return float(value) if hasattr(value, "__float__") else value
    except (TypeError, ValueError, OverflowError):
        return value


def is_integer(value: object) -> bool:
    """Whether a value is an integer, Python's or NumPy's; a bool is none."""
    value = plain(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a number, Python's or NumPy's, and finite as a float; a bool is none."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def as_integers(values: object) -> tuple[int, ...] | None:
    """The integers of a sequence or of an array with one axis; ``None`` where it is none."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, Iterable) or isinstance(values, (Mapping, Set)):
        return None
    numbers = [plain(value) for value in values]
    return tuple(numbers) if all(map(is_integer, numbers)) else None


def require_flag(owner: str, argument: str, value: object) -> bool:
    """``value`` as a Python bool; ``ValueError`` where it is none."""
    require(isinstance(plain(value), bool), owner, argument, "True or False", value)
    return plain(value)


def require_integer(owner: str, argument: str, value: object, minimum: int = 1) -> int:
    """``value`` as a Python integer; ``ValueError`` unless it is one of ``minimum`` or more."""
    valid = is_integer(value) and plain(value) >= minimum
    require(valid, owner, argument, f"an integer of {minimum} or more", value)
    return plain(value)


def require_choice(owner: str, argument: str, value: object, choices: Iterable[object]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    choices = tuple(choices)
    names = ", ".join(repr(choice) for choice in choices)
    # Of one class first: an array would be compared element by element.
    valid = any(isinstance(value, type(choice)) and value == choice for choice in choices)
    expected = names if len(choices) == 1 else f"one of {names}"
    require(valid, owner, argument, expected, value)


def require_keys(
    owner: str,
    argument: str,
    values: object,
    known: Collection[str],
    required: Collection[str] = (),
) -> None:
    """Raise ``ValueError`` unless ``values`` is a mapping of known keys with all required ones."""
    require(isinstance(values, Mapping), owner, argument, "a JSON object", values)
    unknown = sorted(set(values) - set(known))  # type: ignore[call-overload]
    require(not unknown, owner, argument, "free of unknown keys", unknown)
    missing = sorted(set(required) - set(values))  # type: ignore[call-overload]
    require(not missing, owner, argument, "complete: keys are missing", missing)


def dtype_name(dtype: object) -> str:
    """The name of one of MLX's types without its module: ``float32``."""
    return str(dtype).rpartition(".")[-1]

"""Argument checks that name the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


def require(condition: bool, owner: str, argument: str, expected: str, value: object) -> None:
    """Raise ``ValueError`` unless ``condition`` holds.

    The message reads ``[owner] 'argument' must be expected but got value``.
    """
    if not condition:
        raise ValueError(f"[{owner}] '{argument}' must be {expected} but got {value!r}")


def is_integer(value: object) -> bool:
    """True for a Python integer; a bool is not one."""
    return isinstance(value, int) and not isinstance(value, bool)


def require_flag(owner: str, argument: str, value: object) -> None:
    """Raise ``ValueError`` unless ``value`` is a bool."""
    require(isinstance(value, bool), owner, argument, "True or False", value)


def require_integer(owner: str, argument: str, value: object, minimum: int = 1) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of ``minimum`` or more."""
    valid = is_integer(value) and value >= minimum  # type: ignore[operator]
    require(valid, owner, argument, f"an integer of {minimum} or more", value)


def require_choice(owner: str, argument: str, value: object, choices: Iterable[object]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    choices = tuple(choices)
    names = ", ".join(repr(choice) for choice in choices)
    require(value in choices, owner, argument, f"one of {names}", value)


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

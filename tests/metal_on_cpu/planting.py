"""Faults that are planted in a text, and what notices them."""

from __future__ import annotations

from collections.abc import Callable

from metal_on_cpu.errors import MslError

WRONG_NUMBERS = "wrong numbers"


def planted(text: str, right: str, wrong: str, occurrence: int | None = None) -> str:
    """``text`` with ``wrong`` where ``right`` is: in its one place, or that of several, from 1."""
    parts = text.split(right)
    if occurrence is None:
        assert len(parts) == 2, f"{len(parts) - 1} places read {right!r}"
        occurrence = 1
    assert 0 < occurrence < len(parts), f"{len(parts) - 1} places read {right!r}"
    return right.join(parts[:occurrence]) + wrong + right.join(parts[occurrence:])


def found(check: Callable[[], object]) -> str:
    """In words, which numbers ``check`` gives as wrong, or what the compiler or sanitizer says.

    Nothing if all is right.
    """
    try:
        wrong = check()
    except MslError as error:
        return str(error)
    return f"{WRONG_NUMBERS}: {wrong}" if wrong else ""

"""Random cases of one check, few by default and many with -m slow."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

#: Ours start with who refuses, and say what was expected.
OURS = re.compile(r"\[\w+\] .*(must|no checkpoint is whole)", re.DOTALL)


def fuzzed(strategy: st.SearchStrategy, few: int, many: int) -> Callable:
    """Make a check of one example a test of ``few``, and with -m slow of ``many``."""

    def decorate(check: Callable[[Any], None]) -> Callable:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(examples: int) -> None:
            # The same cases every time: a failure can be looked at, and CI does not waver.
            options = settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            options(given(strategy)(check))()

        functools.update_wrapper(test, check, updated=())
        del test.__wrapped__  # pytest would ask for the check's argument
        return test

    return decorate


@contextlib.contextmanager
def refused_clearly(
    kinds: tuple[type[Exception], ...] = (ValueError, FileNotFoundError),
) -> Iterator[None]:
    """Lets errors of our own pass, and no others."""
    try:
        yield
    except kinds as error:
        if not OURS.search(str(error)):
            raise AssertionError(f"an unclear refusal: {error!r}") from error

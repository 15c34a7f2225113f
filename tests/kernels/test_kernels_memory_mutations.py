"""Planted bugs in the memory kernels: each has to be caught, and in the way it should be.

The other tests of the kernels are only worth what they would notice.
"""

from __future__ import annotations

import re

import memory_bugs
import memory_cases
import pytest
from kernel_mutations import Mutation, noticed
from memory_bugs import AXES, CHANNEL, FORWARD, LAYER, MANY_TAPS, PLAIN
from memory_cases import Case


def wrong_numbers(case: Case, backward: bool) -> dict[str, float]:
    given = memory_cases.arguments(case)
    wrong = memory_cases.wrong(memory_cases.compare_forward(case, given))
    if backward and not wrong:
        wrong = memory_cases.wrong(memory_cases.compare_backward(case, given))
    return wrong


@pytest.mark.parametrize("case", [LAYER, CHANNEL, AXES, PLAIN, MANY_TAPS], ids=str)
def test_nothing_is_caught_without_a_bug(case: Case) -> None:
    assert noticed(lambda: wrong_numbers(case, backward=True)) == ""


@pytest.mark.parametrize(
    ("bug", "case", "caught"),
    [
        pytest.param(Mutation.written(file, text), case, caught, id=f"{file}: {text}")
        for file, case, caught, texts in memory_bugs.TABLE
        for text in texts
    ],
)
def test_bug_is_caught(bug: Mutation, case: Case, caught: str) -> None:
    found = noticed(lambda: wrong_numbers(case, backward=bug.file != FORWARD), bug)
    assert re.match(f"[^\n]*({caught})", found), found

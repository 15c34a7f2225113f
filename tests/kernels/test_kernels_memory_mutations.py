"""Planted bugs in the memory kernels: each has to be caught, and in the way it should be.

The other tests of the kernels are only worth what they would notice.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import memory_bugs
import memory_cases
import pytest
from kernel_devices import noticed
from memory_bugs import AXES, CHANNEL, FORWARD, LAYER, MANY_TAPS, NUMBERS, PLAIN
from memory_cases import Case


class Bug(NamedTuple):
    file: str
    correct: str
    planted: str
    case: Case
    caught: str


def _bugs() -> list:
    bugs = []
    for file, case, caught, texts in memory_bugs.TABLE:
        for text in texts:
            before, right, wrong, after = re.fullmatch(
                r"(.*)\{\{(.*) => (.*)\}\}(.*)", text, re.DOTALL
            ).groups()
            bug = Bug(file, before + right + after, before + wrong + after, case, caught)
            name = re.sub(r"\s+", " ", f"{file}: {text}")
            bugs.append(pytest.param(bug, id=name))
    return bugs


def _outcome(case: Case, backward: bool) -> str:
    """What the tests would see: which numbers are wrong, or nothing."""
    given = memory_cases.arguments(case)
    wrong = memory_cases.wrong(memory_cases.compare_forward(case, given))
    if backward and not wrong:
        wrong = memory_cases.wrong(memory_cases.compare_backward(case, given))
    return f"{NUMBERS}: {wrong}" if wrong else ""


@pytest.mark.parametrize("case", [LAYER, CHANNEL, AXES, PLAIN, MANY_TAPS], ids=str)
def test_nothing_is_caught_without_a_bug(case: Case) -> None:
    assert noticed(lambda: _outcome(case, backward=True)) == ""


@pytest.mark.parametrize("bug", _bugs())
def test_bug_is_caught(bug: Bug) -> None:
    def check() -> str:
        return _outcome(bug.case, backward=bug.file != FORWARD)

    found = noticed(check, bug.file, bug.correct, bug.planted)
    assert re.match(f"[^\n]*({bug.caught})", found), found

"""Planted bugs in the memory kernels: each has to be caught, and in the way it should be.

The other tests of the kernels are only worth what they would notice.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import memory_bugs
import memory_cases
import pytest
from kernel_devices import on_cpu
from memory_bugs import AXES, CHANNEL, FORWARD, HEADER, LAYER, MANY_TAPS, NUMBERS, PLAIN
from memory_cases import Case
from metal_on_cpu import MslError

from mlx_tlstm.kernels import library


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
    """What the tests would see: the sanitizer's message, which numbers are wrong, or nothing."""
    given = memory_cases.arguments(case)
    try:
        wrong = memory_cases.wrong(memory_cases.compare_forward(case, given))
        if backward and not wrong:
            wrong = memory_cases.wrong(memory_cases.compare_backward(case, given))
    except MslError as error:
        return str(error)
    return f"{NUMBERS}: {wrong}" if wrong else "nothing"


@pytest.mark.parametrize("case", [LAYER, CHANNEL, AXES, PLAIN, MANY_TAPS], ids=str)
def test_nothing_is_caught_without_a_bug(case: Case) -> None:
    with on_cpu(check=False):
        assert _outcome(case, backward=True) == "nothing"


@pytest.mark.parametrize("bug", _bugs())
def test_bug_is_caught(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    original = library.source

    def source(file_name: str) -> str:
        text = original(file_name)
        in_header = bug.file == HEADER and file_name.endswith(".h") and bug.correct in text
        if file_name != bug.file and not in_header:
            return text
        assert text.count(bug.correct) == 1
        return text.replace(bug.correct, bug.planted)

    monkeypatch.setattr(library, "source", source)
    with on_cpu(check=False):
        found = _outcome(bug.case, backward=bug.file != FORWARD)
    assert re.match(f"[^\n]*({bug.caught})", found), found

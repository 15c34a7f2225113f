"""Bugs planted in the sample kernels: the type check or the sanitizer names every one.

Without a bug neither finds anything at the same sizes: ``test_check.py`` and ``test_kernels.py``.
"""

import re

import pytest

from metal_on_cpu.planted_bugs import BUGS, Bug, check, run

pytestmark = pytest.mark.usefixtures("compiler")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug(bug: Bug):
    found = check(bug.kernel, bug.case)
    if bug.check_says is None:
        assert found == ""
    else:
        assert re.search(bug.check_says, found), found
    if bug.sanitizer_says is not None:
        found = run(bug.kernel, bug.case, "san")
        assert re.search(bug.sanitizer_says, found), found


@pytest.mark.parametrize("bug", [b for b in BUGS if b.check_says is None], ids=lambda bug: bug.name)
@pytest.mark.parametrize("order", [1, 2])
def test_bug_whatever_the_order(bug: Bug, order: int):
    """What the schedule happens to do must not hide a bug."""
    assert run(bug.kernel, bug.case, "san", order) != ""

"""Tables of the documentation that the code knows."""

from __future__ import annotations

import re

import pytest
from processes import ROOT

from mlx_tlstm import TLSTM, VARIANTS
from mlx_tlstm.rivals import RIVALS
from mlx_tlstm.tasks import TASKS


def rows_under(header):
    """The rows of the table in docs/training.md whose header begins so, cell by cell."""
    text = (ROOT / "docs" / "training.md").read_text()
    table = text[text.index(f"| {header}") :].split("\n\n")[0]
    return [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("settings", ["laptop", "`--paper`"])
def test_the_tasks_settings(settings):
    rows = {row[0]: row[2:] for row in rows_under("task | settings") if row[1] == settings}
    assert list(rows) == list(TASKS)
    for name, task in TASKS.items():
        config = task.quick() if settings == "laptop" else task.paper()
        budget = f"{config.samples:,} samples" if config.epochs is None else ""
        budget = budget or f"{config.epochs} epoch{'s' * (config.epochs > 1)}"
        sizes = (config.depth, config.hidden_size, config.length, config.batch_size)
        bias = str(config.forget_bias).removesuffix(".0")
        expected = [f"`{config.variant}`", *map(str, sizes), budget, bias]
        assert rows[name] == expected


def test_the_variants():
    found = {row[0].strip("`"): row[2:] for row in rows_under("`--variant`")}
    text = (ROOT / "docs" / "training.md").read_text()
    others = text[text.index("Others' networks, which") :].split("\n\n")[0]
    assert [*found, *re.findall("`([^`]+)`", others)] == sorted(
        VARIANTS, key=[*found, *RIVALS].index
    )
    for name, (axes, size, convolved, norm) in found.items():
        variant = VARIANTS[name]
        if variant.axes:
            assert (int(axes), int(size.split()[0])) == (variant.axes, variant.kernel_size)
            assert (convolved == "yes") == variant.memory_convolution
            assert (norm or None) == variant.norm
            assert (convolved == "(no memory cell)") == (variant.kind is not TLSTM)

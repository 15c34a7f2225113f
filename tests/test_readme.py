"""The README's code for one's own models runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx

README = Path(__file__).resolve().parents[1] / "README.md"


def test_in_your_own_code():
    section = README.read_text().partition("## In your own code\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["y"].shape == (50, 28, 100)
    first = names["loss"].item()
    inputs, targets = mx.random.normal((15, 12, 65)), mx.zeros((15, 12), dtype=mx.int32)
    for _ in range(20):
        last = names["step"](inputs, targets).item()
    assert last < 0.5 * first  # targets that are all the same are soon learnt

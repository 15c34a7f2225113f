"""The script that measures long sequences, as a user starts it."""

from __future__ import annotations

import re

import long_sequences
from click.testing import CliRunner


def test_a_network_of_one_layer():
    arguments = ["--steps", "30", "--chunk", "20", "--way", "gradient", "--variant", "irnn"]
    result = CliRunner().invoke(long_sequences.main, [*arguments, "--hidden-size", "5"])
    assert result.exit_code == 0, result.output
    assert "irnn, L=1, M=5" in result.output


def test_table():
    arguments = ["--steps", "30", "--steps", "45", "--chunk", "20", "--way", "call"]
    arguments += ["--way", "chunks", "--hidden-size", "5", "--markdown"]
    result = CliRunner().invoke(long_sequences.main, arguments)
    assert result.exit_code == 0, result.output
    rows = re.findall(r"^\| (\d+) +\| +(.+?) \| +(.+?) \|$", result.output, re.MULTILINE)
    assert [row[0] for row in rows] == ["30", "45"]
    for _, *cells in rows:
        assert all(re.fullmatch(r"\d+\.\d s, \d+ MiB", cell) for cell in cells)
    assert "one call" in result.output
    assert "chunks of 20" in result.output
    assert "gradient" not in result.output

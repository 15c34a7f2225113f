"""The script that counts parameters, as a user starts it."""

from __future__ import annotations

import csv
import json

import numpy as np
import parameters
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten

from mlx_tlstm import SequenceModel, make_layer
from mlx_tlstm.rivals import RIVALS


@pytest.mark.parametrize(
    ("variant", "symbols", "hidden_size", "depth", "expected"),
    [
        # What the paper prints, in units of 2^20, and the count by hand.
        ("3d-tlstm+cn", (205, 205), 1200, 6, 52_521_814),
        ("slstm", (205, 205), 1120, 4, 8 * 1120**2 + 4 * 1120 + (2 * 1120 + 1) * 205 + 1120),
        ("2d-tlstm", (11, 11), 400, 7, 1203 * (4 * 400 + 3) - 3 * 1603 + 1603 + 22 * 400 + 411),
        ("2d-tlstm-f", (1, 10), 100, 3, (2 * 100 + 1) * 402 + 200 + 1010),
        ("2d-tlstm-m", (65, 65), 100, 10, (3 * 100 + 1) * 400 + 6600 + 6565),
    ],
)
def test_parameter_counts(variant, symbols, hidden_size, depth, expected):
    assert parameters.parameter_count(variant, symbols, hidden_size, depth) == expected


def test_counts_are_those_of_models():
    for count in parameters.counts():
        if count["hidden_size"] == 100 and "memorization" in count["task"]:
            for depth in count["depths"]:
                model = SequenceModel(make_layer(count["variant"], 65, 100, depth), 65)
                sizes = [np.array(array).size for _, array in tree_flatten(model.parameters())]
                assert sum(sizes) == count["parameters"], count


def test_counts_are_as_printed():
    printed = [count for count in parameters.counts() if count["printed"]]
    assert {count["source"] for count in printed} == {"Fig. 3", "Table 1"}
    for count in printed:
        millions = float(count["printed"].strip("≈M"))
        unit = "in_10^6" if count["variant"] in RIVALS else "in_2^20"  # ours in the paper's unit
        assert count[unit] == pytest.approx(millions, rel=0.05)
    assert {count["variant"] for count in printed} > {"mlstm", "rhn"}


def test_formats():
    runner = CliRunner()

    def output(*arguments):
        result = runner.invoke(parameters.main, list(arguments))
        assert result.exit_code == 0, result.output
        return result.output

    of_table = [r for r in json.loads(output("--format", "json")) if r["source"] == "Table 1"]
    large, mlstm, rhn = of_table
    assert (mlstm["parameters"], rhn["parameters"]) == (20_394_805, 45_952_705)
    assert large["parameters"] == 52_521_814
    assert large["in_2^20"] == pytest.approx(50.09, abs=0.005)
    assert large["in_10^6"] == pytest.approx(52.52, abs=0.005)
    assert large["depths"] == [6]
    rows = list(csv.DictReader(output("--format", "csv").splitlines()))
    assert len(rows) == len(parameters.counts())
    assert {row["depths"] for row in rows if row["variant"] == "slstm"} >= {"1 2 3 4", "1 3 5"}
    text = output("--task", "pmnist")
    assert "2d-tlstm-f" in text
    assert "wikipedia" not in text
    lines = output("--task", "wikipedia", "--format", "markdown").splitlines()
    assert lines[0].startswith("### Parameters")
    row = next(line for line in lines if "Table 1" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == ["6", "1200", "52,521,814", "52.52", "50.09", "50.1M"]

"""Every target at a tiny size, in processes as a user starts them.

It proves that all of it runs, stops and goes on; the figures mean nothing.
"""

from __future__ import annotations

import csv
import json
import math
import re
import signal
import subprocess
import sys

import pytest
from processes import ROOT, environment

from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.runs import RunFolder

pytestmark = pytest.mark.smoke

TABLES = ("table-1", "table-2", "table-3")
RIVALS = ("rivals-memorization", "rivals-addition", "rivals-mnist")
AXES = ("axes-wikipedia", "axes-mnist")
STUDIES = ("starts", "symbols-20", "addition-digits", "addition-15", *AXES, *RIVALS)
PICTURES = ("tasks", "figure-3", "figure-4", "figure-4-lag", "figure-5", *STUDIES)
#: Rows of each target's table.
ROWS = {"table-1": 8, "table-2": 8, "table-3": 20}
ROWS |= {
    "tasks": len(TASKS),
    "figure-3": 14,
    "figure-4": 28,
    "figure-4-lag": 28,
    "figure-5": 28,
    "starts": 12,  # a row a run, which panels and smoke sizes share
    "symbols-20": 2,
    "addition-digits": 8,
    "addition-15": 2,
    **dict.fromkeys(AXES, 2),
    **dict.fromkeys(RIVALS, 10),
}


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-u", f"scripts/{script}.py", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    )


def finish(script, *arguments):
    process = start(script, *arguments)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


def stop(process, line, number):
    """Signal a process when it has printed a line that starts so; what else it says."""
    for printed in process.stdout:
        if printed.strip().startswith(line):
            process.send_signal(number)
            return process.communicate()[1]
    raise AssertionError(process.communicate()[1])


def check_table(stem, rows):
    """Its files agree, and hold finite figures of runs that are there."""
    with stem.with_suffix(".csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == rows
    values = json.loads(stem.with_suffix(".json").read_text())
    assert values["rows"] == found
    text = stem.with_suffix(".md").read_text()
    assert str(stem.parent) not in text
    linked = f"]({stem.name}.csv): {rows} rows." in text
    for row in found:
        assert not row["run folder"] or (stem.parent / row["run folder"] / "test.json").exists()
        assert linked or row["run folder"] in text
    for run in values["runs"]:
        assert run["state"] == "ended"
        assert all(math.isfinite(run[name]) for name in ("best", "test", "seconds", "samples"))
    return found


def check_picture(stem):
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in stem.with_suffix(".svg").read_text()
    assert f"]({stem.name}.png)" in stem.with_suffix(".md").read_text()


def trained_files(folder):
    """What training wrote, and when."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/*") if path.is_file()}


def test_every_target(data_options, tmp_path):
    command = ["reproduce", "all", "--scale", "smoke", "--out", tmp_path / "out", *data_options]
    process = start(*command)
    errors = stop(process, "3 of 28", signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Terminated with" in errors
    assert "to go on: python scripts/reproduce.py all --scale smoke" in errors
    process = start(*command)
    stop(process, "9 of 28", signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    [ended] = re.findall(r"28 runs, (\d+) of which ended before", finish(*command))
    assert 9 <= int(ended) < 28

    out = tmp_path / "out"
    for target in (*TABLES, *PICTURES):
        check_table(out / target, ROWS[target])
        if target in PICTURES:
            check_picture(out / target)
    runs = [RunFolder.open(path.parent) for path in out.glob("*/config.json")]
    assert {run.config.task for run in runs} == set(TASKS)
    assert all(run.ended and run.read_metrics() for run in runs)

    before = trained_files(out)
    again = finish(*command)
    assert not re.search(r"^ *\d+ of \d+  ", again, re.MULTILINE)
    assert trained_files(out) == before

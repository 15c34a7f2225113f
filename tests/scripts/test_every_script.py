"""Every script starts where nothing but the repository is on the path."""

from __future__ import annotations

import subprocess
import sys

import pytest
from processes import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_help(script):
    result = subprocess.run(
        [sys.executable, str(script), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert result.stdout.startswith(f"Usage: {script.name}")


def test_a_task_that_the_paper_has_not():
    """One more line in TASKS breaks no script; the paper's figures stay as they are."""
    program = (
        "from mlx_tlstm.tasks import TASKS\n"
        "TASKS['recall'] = TASKS['memorization']\n"
        f"import {', '.join(script.stem for script in SCRIPTS)}\n"
        "from experiments.plans import Request, planned_runs\n"
        "print(*(len(planned_runs(t, Request('paper'))) for t in ('tasks', 'figure-4')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}", "PATH": ""},
    )
    # The stand-in's settings name the task that it is a copy of, so that they are one run.
    assert result.stdout == "5 56\n"

"""Every script starts where nothing but the repository is on the path."""

from __future__ import annotations

import importlib
import subprocess
import sys

import click
import mlx.core as mx
import pytest
from processes import ROOT, environment

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


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_every_option_is_explained(script):
    options = [
        parameter
        for parameter in importlib.import_module(script.stem).main.params
        if isinstance(parameter, click.Option)
    ]
    assert options
    assert [option.name for option in options if not option.help] == []


@pytest.mark.skipif(mx.is_available(mx.gpu), reason="there is a GPU here")
@pytest.mark.parametrize(
    "command", [["time_tasks", "memorization"], ["long_sequences", "--steps", "2"]]
)
def test_the_variable_names_what_the_machine_lacks(command):
    """In one line, also from a process that the script has started."""
    result = subprocess.run(
        [sys.executable, f"scripts/{command[0]}.py", *command[1:]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(MLX_TLSTM_BACKEND="cuda"),
    )
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: [")
    assert "'MLX_TLSTM_BACKEND' must be 'ops' or 'reference' here" in line
    assert "Traceback" not in result.stderr


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

"""The learning-curve script, as a user starts it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_tlstm.runs import RunFolder
from mlx_tlstm.tasks import TASKS

SCRIPT = Path(__file__).parents[1] / "scripts" / "learning_curves.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("learning_curves", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def make_run(path, task="memorization", values=(0.1, 0.9)):
    run = RunFolder.create(path, TASKS[task].quick())
    for number, value in enumerate(values, start=1):
        run.append_metrics({"samples": 1000 * number, TASKS[task].metric: value})
    return run


def test_draws_each_run(script, tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", "addition", (0.2,))]
    figure, axes = script.pyplot.subplots()
    script.draw(runs, "accuracy", axes)
    first, second = axes.get_lines()
    assert first.get_xydata().tolist() == [[1.0, 10.0], [2.0, 90.0]]
    assert second.get_xydata().tolist() == [[1.0, 20.0]]
    assert first.get_linestyle() != second.get_linestyle()
    assert "task memorization" in first.get_label()
    assert "task addition" in second.get_label()
    assert "variant" not in first.get_label()
    script.pyplot.close(figure)

    out = tmp_path / "curves.png"
    result = CliRunner().invoke(script.main, [str(tmp_path / "a"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nothing"], "must be a folder that holds config.json"),
        (["empty"], "must hold an evaluation"),
        (["good", "text"], "must share one metric"),
        (["broken"], "must hold JSON"),
    ],
)
def test_refusals(script, tmp_path, names, message):
    (tmp_path / "nothing").mkdir()
    make_run(tmp_path / "empty", values=())
    make_run(tmp_path / "good")
    make_run(tmp_path / "text", "wikipedia")
    make_run(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text(json.dumps([])[:1])
    arguments = [str(tmp_path / name) for name in names]
    result = CliRunner().invoke(script.main, [*arguments, "--out", str(tmp_path / "x.png")])
    assert result.exit_code == 2
    assert message in result.output

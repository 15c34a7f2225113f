"""A run's files that are torn or damaged."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from tiny_tasks import TINY

from mlx_tlstm import training
from mlx_tlstm.commands.main import main
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.runs import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "run"
    training.fit(TASKS["addition"].quick().replace(**TINY, length=2, variant="2d-tlstm"), path)
    return path


def evaluate(run, *arguments):
    return CliRunner().invoke(main, ["evaluate", str(run), "--weights", "last", *arguments])


@pytest.fixture
def kept(run):
    """The run, whose files are as they were afterwards."""
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    yield run
    for path, content in before.items():
        path.write_bytes(content)


def test_records_of_a_run_that_was_killed(kept):
    metrics, run = kept / "metrics.jsonl", RunFolder.open(kept)
    whole = metrics.read_bytes()
    metrics.write_bytes(whole[:-20])
    assert len(run.read_metrics()) == whole.count(b"\n") - 1
    metrics.write_bytes(whole.replace(b",", b"", 1))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1' must hold JSON but"):
        run.read_metrics()
    metrics.write_text(json.dumps({"samples": 3, "accuracy": "much"}) + "\n")
    with pytest.raises(ValueError, match=r"line 1: evaluation_loss' must be a number"):
        run.read_metrics("evaluation_loss")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"accuracy": 1'])
def test_damaged_files_of_a_run(kept, content):
    """A model holds its own figures, so that its run's are not needed for it."""
    for name in ("metrics.jsonl", "test.json"):
        (kept / name).write_text(content)
        assert evaluate(kept).exit_code == 0
    (kept / "config.json").write_text(content)
    refused = evaluate(kept)
    assert refused.exit_code == 2
    assert "config.json" in refused.output

"""Files of records that are torn or damaged."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from tiny_tasks import TINY

from mlx_tlstm import training
from mlx_tlstm.commands.main import main
from mlx_tlstm.files import read_json, read_json_lines
from mlx_tlstm.kernels import tuning
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.runs import RunFolder

DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b"", []),
        (b'{"a": 1}\n', [{"a": 1}]),
        (b'{"a": 1}', [{"a": 1}]),
        (b'{"a": 1}\n{"b": 2', [{"a": 1}]),
        (b'{"a": 1}\n{', [{"a": 1}]),
        (b'{"a": 1}\n{"b": "\xc3', [{"a": 1}]),
        (b'{"a": 1}\n\0\0\0', [{"a": 1}]),
        (b'{"a": "\\u2028\xe2\x80\xa8"}\n', [{"a": "\u2028\u2028"}]),
    ],
)
def test_a_last_line_that_breaks_off_is_left_out(tmp_path, content, records):
    (tmp_path / "log").write_bytes(content)
    assert read_json_lines(tmp_path / "log", "test") == records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"b": 2\n{"a": 3}\n', r"log, line 2' must hold JSON but Expecting ',' delim"),
        (b'{"a": 1}\n{"b": 2\n', "log, line 2' must hold JSON but"),
        (b'{"a": 1}\n\n{"b": 2}', "log, line 2' must hold JSON but Expecting value"),
        (b"\0\0\n", "log, line 1' must hold JSON but"),
        (b"text", "log, line 1' must hold JSON but"),
        (b'{"a": 1}\n[1]\n', r"log, line 2' must be a JSON object but got \[1\]"),
        (b'{"a": 1}\n3', "log, line 2' must be a JSON object but got 3"),
        (DEEP + b"\n", "log, line 1' must hold JSON but maximum recursion"),
        (b'{"\xff": 1}\n', "log, line 1' must hold JSON but"),
    ],
)
def test_damage_elsewhere_names_the_line(tmp_path, content, message):
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(ValueError, match=rf"\[test\] '.*{message}"):
        read_json_lines(tmp_path / "log", "test")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", DEEP, b"1" * 5000])
def test_damaged_json(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r"\[test\] '.*file' must hold JSON but"):
        read_json(tmp_path / "file", "test")


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


def test_results_of_a_sweep(kept):
    results = pytest.importorskip("experiments.results")
    results.record_origin(kept, {"cpu": "x"}, "")
    assert results.read_result(kept).state == "ended"
    for name, content in (("test.json", "{}"), ("test.json", "{"), ("origin.json", "[]")):
        before = (kept / name).read_text()
        (kept / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            results.read_result(kept)
        (kept / name).write_text(before)
    (kept / "events.jsonl").write_text('{"event": "stop"}\n{"event": "ro')
    (kept / "test.json").unlink()
    assert results.read_result(kept).state == "diverged"
    (kept / "events.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"events\.jsonl, line 1: event' must be a word"):
        results.read_result(kept)
    (kept / "events.jsonl").unlink()
    (kept / "origin.json").unlink()


@pytest.mark.parametrize("content", [b"[]", b'{"a": []}', b"{", b"\xff", DEEP])
def test_damaged_tuning(tmp_path, monkeypatch, content):
    file = tmp_path / "tuning.json"
    file.write_bytes(content)
    monkeypatch.setenv(tuning.ENVIRONMENT_VARIABLE, str(file))
    for read in (
        lambda: tuning.store({}),
        lambda: tuning.select(tuning.Product("k", tuning.mx.float32, 1, 1, 1)),
    ):
        with pytest.raises(ValueError, match=r"tuning\.json' must be what scripts/tune\.py wrote"):
            read()

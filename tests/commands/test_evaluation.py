"""``mlx-tlstm evaluate``: every metric, of any batch size, for people and as JSON."""

from __future__ import annotations

import json
import math

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten
from tiny_tasks import load_run

import mlx_tlstm
from mlx_tlstm import TLSTM, VARIANTS, training
from mlx_tlstm.commands.main import main
from mlx_tlstm.layers.variants import TensorVariant
from mlx_tlstm.models.metadata import ModelMetadata
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.objective import encode

TINY = {"length": 4, "depth": 2, "hidden_size": 8, "batch_size": 6, "eval_every": 24, "samples": 24}


def test_a_variant_that_is_not_here(settings, tmp_path, monkeypatch):
    """The layer is rebuilt from its own arguments; whether it is causal is its own, too."""
    norms = {"sound": "channel", "leaky": "layer"}
    for name, norm in norms.items():
        monkeypatch.setitem(VARIANTS, name, TensorVariant(TLSTM, 1, 3, True, norm))
        training.fit(settings("wikipedia", variant=name), tmp_path / name)
    monkeypatch.undo()
    for name in norms:
        result = invoke(tmp_path / name)
        assert result.exit_code == 0, result.output
        assert f"(wikipedia, {name}, " in result.stdout
        assert (f"{name} is not causal" in result.stderr) == (name == "leaky")


def invoke(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def found(*arguments):
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "text").write_text("a tensor of cells, " * 61)
    variants = {"addition": "2d-tlstm", "wikipedia": "2d-tlstm+ln"}
    for name, variant in variants.items():
        data = str(folder / "text") if name == "wikipedia" else None
        config = TASKS[name].quick().replace(variant=variant, data=data, **TINY)
        training.fit(config, folder / name)
    return folder


def test_metrics_of_a_task_with_whole_sequences(runs):
    _, task, model = load_run(runs / "addition")
    record = found(runs / "addition")
    metrics = record.pop("metrics")
    assert record == {
        "task": "addition",
        "variant": "2d-tlstm",
        "parameters": sum(array.size for _, array in tree_flatten(model.parameters())),
        "weights": "best",
        "split": "test",
        "data": None,
        "note": None,
        "causal": True,
    }
    own = training.evaluate(model, task, "test")
    assert {name: metrics[name] for name in own} == own
    assert metrics.keys() - own.keys() == {"predictions", "answers", "sequences"}
    assert (metrics["predictions"], metrics["answers"]) == (100 * 16, 100 * 5)
    assert metrics["sequences"] == 100


def test_metrics_of_text(runs):
    """The accuracy by hand, from the logits of the N streams."""
    result = invoke(runs / "wikipedia", "--json")
    assert "not causal" in result.stderr
    record = json.loads(result.stdout)
    _, task, model = load_run(runs / "wikipedia")
    model.eval()
    right = total = 0
    state = None
    for batch in task.eval_batches("test"):
        x = encode(batch.inputs, task.input_size, mx.float32)
        logits, state = model(x, None if batch.fresh else state)
        right += (np.array(mx.argmax(logits, axis=-1)) == batch.targets).sum()
        total += batch.targets.size
    metrics = record["metrics"]
    start, end = task.splits["test"]
    assert metrics["answers"] == metrics["predictions"] == total == end - start
    assert metrics["accuracy"] == right / total
    assert metrics["bpc"] == pytest.approx(metrics["loss"] / math.log(2))
    assert "sequences" not in metrics
    assert record["note"] == f"N = {task.eval_streams} streams"
    assert record["causal"] is False
    assert "accuracy" not in training.evaluate(model, task, "test")


@pytest.mark.parametrize("name", ["addition", "wikipedia"])
def test_saved_models_have_the_figures_of_their_runs(name, runs, tmp_path):
    mlx_tlstm.load(runs / name).save(tmp_path / "model")
    data = ["--data", runs / "text"] if name == "wikipedia" else []
    assert found(tmp_path / "model", *data) == found(runs / name) | {"weights": None}
    line = invoke(tmp_path / "model", *data).stdout
    assert line == invoke(runs / name).stdout.replace(", best weights", "")


def test_saved_models_that_cannot_be_evaluated(runs, tmp_path):
    model = mlx_tlstm.load(runs / "wikipedia")
    model.save(tmp_path / "moved")
    result = invoke(tmp_path / "moved")
    assert result.exit_code == 2
    assert (
        "'data' must be a file but 'text' is missing; --data, or data=, says where" in result.stderr
    )
    model.save(tmp_path / "bare", ModelMetadata())
    result = invoke(tmp_path / "bare")
    assert result.exit_code == 2
    assert "must be one that knows its training" in result.stderr


@pytest.mark.parametrize("task", ["addition", "wikipedia"])
@pytest.mark.parametrize("size", [1, 4, 7, 1000])
def test_any_batch_size_gives_the_same(size, task, runs):
    expected = found(runs / task)
    got = found(runs / task, "--batch-size", size)
    for name, value in expected["metrics"].items():
        assert got["metrics"].pop(name) == pytest.approx(value, rel=1e-5), name
    assert got["metrics"] == {}
    assert got["note"] == expected["note"]


def test_line_for_people(runs):
    result = invoke(runs / "wikipedia", "--split", "validation", "--weights", "last")
    record = found(runs / "wikipedia", "--split", "validation", "--weights", "last")
    metrics = record["metrics"]
    assert (record["split"], record["weights"]) == ("validation", "last")
    assert result.stdout == (
        f"validation: {metrics['bpc']:.4f} bits per character, accuracy "
        f"{100 * metrics['accuracy']:.2f} %, loss {metrics['loss']:.4f} (wikipedia, 2d-tlstm+ln, "
        f"{metrics['answers']} answers, last weights, {record['note']}, data {runs / 'text'})\n"
    )
    assert found(runs / "wikipedia")["data"] == str(runs / "text")
    assert found(runs / "addition")["data"] is None


def test_says_whose_text_it_is(runs, tmp_path, monkeypatch):
    """A saved model knows its text's name only, and another may have it where one is."""
    mlx_tlstm.load(runs / "wikipedia").save(tmp_path / "model")
    other = tmp_path / "text"
    other.write_bytes((runs / "text").read_bytes()[::-1])
    monkeypatch.chdir(tmp_path)
    assert f"data {other})" in invoke("model").stdout


def test_refusals(runs):
    for arguments, message in (
        (["--batch-size", 0], "'--batch-size': 0 is not in the range"),
        (["--batch-size", "x"], "'x' is not a valid int"),
        (["--split", "train"], "'train' is not one of 'test', 'validation'"),
    ):
        result = invoke(runs / "addition", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
    _, task, model = load_run(runs / "addition")
    with pytest.raises(ValueError, match="'batch_size' must be an integer of 1 or more"):
        training.evaluate(model, task, "test", batch_size=0)


def test_what_is_not_finite_is_null(runs, monkeypatch):
    values = {"loss": math.nan, "accuracy": 0.5, "answers": 1}
    monkeypatch.setattr(training, "evaluate", lambda *_, **__: values)
    assert found(runs / "addition")["metrics"] == {"loss": None, "accuracy": 0.5, "answers": 1}

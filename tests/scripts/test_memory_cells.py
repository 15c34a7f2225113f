"""The script that draws memory cells, as a user starts it."""

from __future__ import annotations

from pathlib import Path

import memory_cells
import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from experiments import examples
from tiny_tasks import load_run, write_images

from mlx_tlstm import training
from mlx_tlstm.tasks import TASKS, make_task
from mlx_tlstm.training import build_model, encode
from mlx_tlstm.training.runs import RunFolder
from mlx_tlstm.visualize import diagonal_means, record

TEXT = ("The  café\n$x_1$ is\tone. " * 42).encode()


@pytest.fixture
def make_run(tmp_path):
    """A run folder of an untrained model on any task."""

    def make(task, **changes):
        config = TASKS[task].quick().replace(depth=2, hidden_size=6, batch_size=2, **changes)
        if task == "wikipedia":
            (tmp_path / "text").write_bytes(TEXT)
            config = config.replace(length=20, data=str(tmp_path / "text"))
        elif "mnist" in task:
            (tmp_path / "images").mkdir()
            config = config.replace(data=str(write_images(tmp_path / "images")))
        run = RunFolder.create(tmp_path / "run", config)
        run.save_model("best", build_model(config, make_task(config)), {})
        return run.path

    return make


@pytest.mark.parametrize(
    ("task", "location"), [*((task, "diagonal") for task in TASKS), ("memorization", "all")]
)
def test_memory_cells_of_each_task(make_run, tmp_path, task, location):
    run = make_run(task)
    out = tmp_path / "new" / "cells.v1"
    arguments = [str(run), "--example", "1", "--location", location, "--out", str(out)]
    result = CliRunner().invoke(memory_cells.main, arguments)
    assert result.exit_code == 0, result.output
    png, svg, *lines = result.output.splitlines()
    assert (png, svg) == (f"{out}.png", f"{out}.svg")
    assert Path(png).read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in Path(svg).read_text()
    words = {line.split()[0]: line[7:] for line in lines}
    batch = next(iter(load_run(run)[1].eval_batches("test")))
    if "mnist" in task:
        assert words["target"] == str(batch.targets[1, -1])
        assert len(words["output"]) == 1
        assert "input" not in words
    else:
        assert len(words["input"]) == len(words["target"]) == len(words["output"])
        assert len(words["input"]) == batch.inputs.shape[1]


def test_the_picture_is_the_models(make_run):
    run = make_run("memorization", variant="3d-tlstm+cn", length=3)
    _, task, model = load_run(run)
    figure, (inputs, targets, predictions) = memory_cells.draw(model, task, 4, "diagonal")
    batch = next(iter(task.eval_batches("test")))
    x = encode(batch.inputs[4:5], task.input_size, mx.float32)
    means = diagonal_means(record(model.layer, x))[0].T
    picture = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(picture, (means - means.min()) / np.ptp(means), atol=1e-6)
    assert inputs == task.decode(batch.inputs[4])
    assert targets == task.decode(batch.targets[4])
    answers = np.array(mx.argmax(model(x)[0][0], axis=-1))
    assert predictions == task.decode(answers)


def test_white_space_and_other_bytes_are_visible(make_run):
    _, task, _ = load_run(make_run("wikipedia"))
    symbols = [task.symbols.index(byte) for byte in "e \n\t$é".encode()]
    assert examples.characters(task, symbols) == [*"e␣↵→$··"]


def test_examples_are_fresh_sequences(make_run):
    """In Wikipedia the first batch's streams are examples; the chunks that follow are not."""
    _, task, _ = load_run(make_run("wikipedia"))
    batches = list(task.eval_batches("test"))
    assert [batch.fresh for batch in batches] == [True, False, True]  # the last: a rest
    for number, (inputs, targets) in enumerate(zip(*batches[0][:2], strict=True)):
        got = examples.example_of(task, number)
        np.testing.assert_array_equal(got[0], inputs)
        np.testing.assert_array_equal(got[1], targets)
    count = sum(len(batch.inputs) for batch in batches if batch.fresh)
    examples.example_of(task, count - 1)
    with pytest.raises(ValueError, match=f"'example' must be below {count}, the test examples"):
        examples.example_of(task, count)


def test_default_name_and_weights(make_run):
    run = make_run("addition", length=1)
    result = CliRunner().invoke(memory_cells.main, [str(run)])
    assert result.exit_code == 0, result.output
    assert (run / "memory-cells-diagonal-0.png").exists()
    assert (run / "memory-cells-diagonal-0.svg").exists()
    result = CliRunner().invoke(memory_cells.main, [str(run), "--weights", "last"])
    assert result.exit_code == 2
    assert "last/model.safetensors' is missing" in result.output


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["--example", "100"], "'example' must be below 100, the test examples, but got 100"),
        ({}, ["--example", "-1"], "-1 is not in the range"),
        ({"variant": "2d-trnn"}, [], "with a memory cell but got 'TRNN'"),
        ({}, ["--location", "corner"], "'corner' is not one of"),
    ],
)
def test_refusals(make_run, changes, arguments, message):
    run = make_run("memorization", **changes)
    result = CliRunner().invoke(memory_cells.main, [str(run), *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert not list(run.glob("memory-cells*"))


@pytest.mark.parametrize("variant", ["rhn", "lstm"])
def test_a_network_without_a_memory_tensor(variant, tmp_path):
    config = TASKS["memorization"].quick().for_variant(variant)
    sizes = {"hidden_size": 5, "samples": 30, "eval_every": 30, "length": 2}
    training.fit(config.replace(**sizes), tmp_path / "run")
    result = CliRunner().invoke(memory_cells.main, [str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "must be of a TLSTM or StackedLSTM, with a memory cell" in " ".join(
        result.output.split()
    )


def test_no_run(tmp_path):
    result = CliRunner().invoke(memory_cells.main, [str(tmp_path)])
    assert result.exit_code == 2
    assert "must be a folder that holds config.json" in result.output

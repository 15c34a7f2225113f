"""Models as folders: what is saved comes back bit for bit, and nothing else is accepted."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import os
import re
import shlex
import threading
import types
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from comparison import assert_close
from layer_helpers import OUR_VARIANTS, moved
from mlx import nn, optimizers
from mlx.utils import tree_map
from tiny_tasks import load_run

import mlx_tlstm
from mlx_tlstm import (
    TLSTM,
    TRNN,
    ModelMetadata,
    SequenceModel,
    StackedLSTM,
    make_layer,
    training,
)
from mlx_tlstm.commands.main import main
from mlx_tlstm.layers.base import DTYPES
from mlx_tlstm.models.generation import generate
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.origin import task_of, training_command
from mlx_tlstm.training.runs import RunFolder

INPUT, HIDDEN, CLASSES = 5, 7, 4
TINY = {"length": 2, "depth": 2, "hidden_size": 6, "batch_size": 4, "eval_every": 8}


def build(layer, dtype="float32"):
    mx.random.seed(1)
    model = SequenceModel(layer, CLASSES)
    model.set_dtype(getattr(mx, dtype))
    return moved(model)


def check_same(model, other):
    assert_close(other.parameters(), model.parameters())
    assert type(model.layer) is type(other.layer)
    x = mx.random.normal((2, 6, model.layer.cell.input_size))
    model.eval()
    assert_close(other(x), model(x))


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        *((variant, "float32") for variant in OUR_VARIANTS),
        *(("3d-tlstm+cn", dtype) for dtype in DTYPES[1:]),
    ],
)
def test_round_trip(variant, dtype, tmp_path):
    model = build(make_layer(variant, INPUT, HIDDEN, depth=3), dtype)
    model.save(tmp_path / "model")
    for load in (SequenceModel.load, mlx_tlstm.load):
        loaded = load(tmp_path / "model")
        assert not loaded.training
        assert not loaded.layer.cell.training
        check_same(model, loaded)


@pytest.mark.parametrize(
    "layer",
    [
        TLSTM(INPUT, HIDDEN, (2, 3, 4), (2, 3, 5), norm="channel", recompute=True),
        TLSTM(INPUT, HIDDEN, (2, 3), (4, 3), memory_convolution=False, norm="layer"),
        TLSTM(INPUT, HIDDEN, 1, forget_bias=3.0, backend="ops"),
        TRNN(INPUT, HIDDEN, (3, 2), (2, 4)),
        StackedLSTM(INPUT, HIDDEN, 2, recompute=True),
    ],
    ids=repr,
)
def test_round_trip_of_other_arguments(layer, tmp_path):
    model = build(layer)
    model.save(tmp_path / "model")
    loaded = mlx_tlstm.load(tmp_path / "model")
    check_same(model, loaded)
    assert loaded.layer.cell.recompute == layer.cell.recompute


def test_metadata(tmp_path):
    metadata = ModelMetadata(
        "wikipedia",
        "2d-tlstm",
        {"bpc": 1.5, "split": "test"},
        "a command",
        bytes([7, 0, 255, 10]),
        quick("wikipedia", data="text"),
    )
    model = build(TLSTM(INPUT, HIDDEN, 2))
    assert model.metadata == ModelMetadata()
    model.save(tmp_path / "given", metadata)
    loaded = mlx_tlstm.load(tmp_path / "given")
    assert loaded.metadata == metadata
    loaded.save(tmp_path / "kept")
    assert mlx_tlstm.load(tmp_path / "kept").metadata == metadata
    model.metadata = {"task": "wikipedia"}
    with pytest.raises(ValueError, match=r"'metadata' must be a ModelMetadata but got \{'task'"):
        model.save(tmp_path / "dictionary")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"'[^']*/file/model'$"):  # the path that was given
        model.save(tmp_path / "file" / "model", metadata)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": 3}, "'task' must be a string"),
        ({"metrics": {"bpc": None}}, "'metrics' must be numbers and words by name"),
        ({"metrics": [1]}, "'metrics' must be numbers and words by name"),
        ({"symbols": b"aa"}, "'symbols' must be distinct bytes"),
        ({"symbols": "ab"}, "'symbols' must be distinct bytes"),
        ({"training": {"task": "addition"}}, "'training' must be a TrainingConfig"),
    ],
)
def test_metadata_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        ModelMetadata(**arguments)


def test_what_cannot_be_saved(tmp_path):
    class Mine(TLSTM):
        pass

    model = build(Mine(INPUT, HIDDEN, 2))
    with pytest.raises(ValueError, match=r"'save' must be of a model of .* got \('Mine', 'Linear'"):
        model.save(tmp_path / "model")
    model = build(TLSTM(INPUT, HIDDEN, 2))
    model.readout = nn.Sequential(model.readout)
    with pytest.raises(ValueError, match=r"got \('TLSTM', 'Sequential'\)"):
        model.save(tmp_path / "model")
    model = build(TLSTM(INPUT, HIDDEN, 2))
    model.readout.set_dtype(mx.float16)
    with pytest.raises(ValueError, match=r"'dtype' must be the same .* \['float16', 'float32'\]"):
        model.save(tmp_path / "model")
    model = build(TLSTM(INPUT, HIDDEN, 2))
    with pytest.raises(ValueError, match=r"'symbols' must be output_size 4 of them but got b'ab'"):
        model.save(tmp_path / "model", ModelMetadata(symbols=b"ab"))
    assert not any(tmp_path.iterdir())


def added_embedding(model):
    model.embedding = nn.Embedding(INPUT, 3)


def added_to_the_cell(model):
    model.layer.cell.scales = [mx.ones((3,))]


def adapted(model):
    class Adapted(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear
            self.lora_a = mx.zeros((INPUT, 2))
            self.lora_b = mx.zeros((2, HIDDEN))

        def __call__(self, x):
            return self.linear(x) + x @ self.lora_a @ self.lora_b

    model.layer.cell.input_projection = Adapted(model.layer.cell.input_projection)


def without_a_bias(module, name):
    linear = nn.Linear(*getattr(module, name).weight.shape[::-1], bias=False)
    setattr(module, name, linear)


def activated(model):
    class Activated(nn.Linear):
        def __call__(self, x):
            return mx.tanh(super().__call__(x))

    model.layer.cell.input_projection = Activated(INPUT, HIDDEN)


def quantized(model):
    model.readout = nn.Linear(32, CLASSES, bias=False).to_quantized(group_size=32)


def another_norm(model):
    model.layer.cell.norm = nn.LayerNorm(HIDDEN)


def another_width(model):
    model.layer.cell.input_projection = nn.Linear(INPUT + 1, HIDDEN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (added_embedding, r"weights: embedding\.weight' must be absent.*got 'float32 \[5, 3\]'"),
        (added_to_the_cell, r"weights: layer\.cell\.scales\.0' must be absent"),
        (adapted, r"layer\.cell\.input_projection' must be a Linear.* got 'Adapted'"),
        (lambda m: without_a_bias(m, "readout"), r"readout\.bias' must be float32 .* got 'absent'"),
        (
            lambda m: without_a_bias(m.layer.cell, "input_projection"),
            r"projection\.bias' must be float32 \[7\], as config\.json says, but got 'absent'",
        ),
        (activated, "input_projection' must be a Linear, as config.json says, but got 'Activated'"),
        (quantized, r"'save' must be of a model .* got \('TLSTM', 'QuantizedLinear'\)"),
        (another_norm, "norm' must be a Normalization"),
        (another_width, r"projection\.weight' must be float32 \[7, 5\].*got 'float32 \[7, 6\]'"),
        (lambda m: m.layer.cell.set_dtype(mx.float16), "'dtype' must be the same"),
        (lambda m: m.set_dtype(mx.complex64), "'dtype' must be one of"),
        (lambda m: setattr(m.layer.cell, "bias", mx.zeros((3,))), r"layer\.cell\.bias' must be"),
    ],
)
def test_what_could_not_be_loaded_is_refused_before_it_is_saved(
    change, message, tmp_path, monkeypatch
):
    model = build(TLSTM(INPUT, HIDDEN, 2, norm="channel"))
    change(model)
    advice = r".*; nothing was written, .*save_weights\(FILE\)"
    with pytest.raises(ValueError, match=message + advice):
        model.save(tmp_path / "model")
    assert not any(tmp_path.iterdir())

    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", asked)
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", asked)
    with pytest.raises(ValueError, match=message + advice):
        mlx_tlstm.push(model, "somebody/model")
    # The advice holds.
    model.save_weights(str(tmp_path / "weights.safetensors"))
    other = build(TLSTM(INPUT, HIDDEN, 2, norm="channel"))
    change(other)
    other.load_weights(str(tmp_path / "weights.safetensors"))
    assert_close(other.parameters(), model.parameters())


def test_a_subclass_with_one_more_parameter(tmp_path):
    class Scaled(SequenceModel):
        def __init__(self, layer, output_size, scale=True):
            super().__init__(layer, output_size)
            if scale:
                self.scale = mx.ones((output_size,))

    with pytest.raises(ValueError, match=r"scale' must be absent, as config\.json says, but got"):
        Scaled(TLSTM(INPUT, HIDDEN, 2), CLASSES).save(tmp_path / "model")
    model = moved(Scaled(TLSTM(INPUT, HIDDEN, 2), CLASSES, scale=False))
    model.save(tmp_path / "model")
    check_same(mlx_tlstm.load(tmp_path / "model"), model)


def test_a_subclass_with_its_own_call(tmp_path):
    """What takes the model's parts would compute something else."""

    class Halved(SequenceModel):
        def __call__(self, x, state=None):
            logits, state = super().__call__(x, state)
            return logits / 2, state

    class Below(Halved):
        pass

    model, x = build(TLSTM(INPUT, HIDDEN, 2)), mx.ones((2, 3, INPUT))
    for kind in (Halved, Below):
        other = kind(model.layer, CLASSES)
        for use, *arguments in (
            (other.save, tmp_path / "model"),
            (mlx_tlstm.push, other, "user/name"),
            (mlx_tlstm.StreamingSession, other),
            (generate, other, [0], 1),
            (training.evaluate, other, None, "test"),
        ):
            with pytest.raises(ValueError, match=r"^\[\w+\] 'model' must .* own would be passed"):
                use(*arguments)
        assert not list(tmp_path.iterdir())
        other.readout = model.readout
        assert_close(other(x)[0], model(x)[0] / 2)
    with pytest.raises(ValueError, match="must be a SequenceModel but got"):
        generate(model.layer, [0], 1)


def test_frozen_models_are_saved(tmp_path):
    model = build(make_layer("3d-tlstm+cn", INPUT, HIDDEN, 2))
    model.freeze()
    model.save(tmp_path / "model")
    check_same(mlx_tlstm.load(tmp_path / "model"), model)


def test_saving_and_loading_draw_no_random_numbers(tmp_path):
    model = build(TLSTM(INPUT, HIDDEN, 2))
    mx.eval(model.parameters())
    mx.random.seed(5)
    model.save(tmp_path / "model")
    mlx_tlstm.load(tmp_path / "model")
    drawn = mx.random.uniform(shape=(3,))
    mx.random.seed(5)
    assert mx.array_equal(drawn, mx.random.uniform(shape=(3,)))


def header(folder):
    """What the header of a model's weights says."""
    return mx.load(str(folder / "model.safetensors"), return_metadata=True)[1]


def strict_json(text):
    def refuse(word):
        raise AssertionError(f"JSON has no {word}")

    return json.loads(text, parse_constant=refuse)


def test_metrics_of_any_kind_of_number(tmp_path):
    metrics = {
        "loss": np.float32(0.5),
        "bpc": mx.array(0.25),
        "answers": np.int64(3),
        "share": float("nan"),
        "perplexity": np.float32(np.inf),
        "lowest": -math.inf,
        "split": "test",
    }
    metadata = ModelMetadata(metrics=types.MappingProxyType(metrics))
    kinds = [type(value) for value in metadata.metrics.values()]
    assert kinds == [float, float, int, float, float, float, str]
    model = build(TLSTM(INPUT, HIDDEN, 2))
    model.save(tmp_path / "model", metadata)
    assert "metrics" not in (tmp_path / "model" / "config.json").read_text()
    assert strict_json(header(tmp_path / "model")["metrics"]) == {
        "loss": 0.5,
        "bpc": 0.25,
        "answers": 3,
        "share": None,
        "perplexity": None,
        "lowest": None,
        "split": "test",
    }
    loaded = mlx_tlstm.load(tmp_path / "model").metadata.metrics
    assert list(loaded) == list(metrics)
    assert all(math.isnan(loaded[name]) for name in ("share", "perplexity", "lowest"))
    assert (loaded["loss"], loaded["answers"]) == (0.5, 3)
    for value in (None, [1], 1j, np.zeros(2), object()):
        with pytest.raises(ValueError, match="'metrics' must be numbers and words by name but got"):
            ModelMetadata(metrics={"loss": value})


def test_a_runs_files_are_json_whatever_was_measured(tmp_path):
    run = RunFolder.create(tmp_path / "run", quick("memorization"))
    record = {"loss": math.nan, "step": np.int64(3), "norms": [np.float32(0.5), -math.inf]}
    run.append_metrics(record)
    run.append_event(record)
    run.save_test_metrics({"weights": "best", "loss": math.inf, "accuracy": 0.5})
    expected = {"loss": None, "step": 3, "norms": [0.5, None]}
    for name in ("metrics.jsonl", "events.jsonl"):
        assert strict_json((run.path / name).read_text()) == expected
    assert strict_json((run.path / "test.json").read_text())["loss"] is None
    # Such a run is loaded all the same.
    model = training.build_model(run.config, TASKS["memorization"](run.config))
    with pytest.raises(ValueError, match="'metrics' must be numbers and words by name but got"):
        run.save_model("best", model, record)
    assert not (run.path / "best").exists()
    run.save_model("best", model, {"loss": math.inf, "step": np.int64(3)})
    assert strict_json(header(run.path / "best")["metrics"]) == {"loss": None, "step": 3}
    assert math.isnan(mlx_tlstm.load(run.path).metadata.metrics["loss"])


@pytest.mark.parametrize("empty", [False, True])
def test_threads_that_save_to_one_path(empty, tmp_path):
    """One of them does, and the others are told; nothing is left beside it."""
    if empty:
        (tmp_path / "model").mkdir()
    model = SequenceModel(make_layer("2d-tlstm", 3, 5, 2), 4)
    mx.eval(model.parameters())
    together, outcomes = threading.Barrier(6), []

    def save():
        together.wait()
        try:
            model.save(tmp_path / "model")
            outcomes.append("saved")
        except ValueError:
            outcomes.append("refused")

    threads = [threading.Thread(target=save) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 5 + ["saved"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert mx.array_equal(mlx_tlstm.load(tmp_path / "model").readout.weight, model.readout.weight)


def test_a_name_as_long_as_a_file_system_takes(tmp_path):
    model = SequenceModel(make_layer("2d-tlstm", 3, 5, 2), 4)
    model.save(tmp_path / ("n" * 255))
    assert mlx_tlstm.load(tmp_path / ("n" * 255)).layer.depth == 2


def test_a_folder_is_whole_or_absent(tmp_path, monkeypatch):
    model = build(TLSTM(INPUT, HIDDEN, 2))
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").write_text("kept")
    with pytest.raises(ValueError, match="'path' must be a new folder, or an empty one, but got"):
        model.save(used)
    with pytest.raises(ValueError, match="'path' must be a new folder"):
        model.save(used / "file")
    assert [path.name for path in used.iterdir()] == ["file"]

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mlx_tlstm.models.folder.sync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*model'"):
            model.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
    model.save(tmp_path / "deep" / "er")
    (tmp_path / "empty").mkdir()
    model.save(tmp_path / "empty")
    check_same(mlx_tlstm.load(tmp_path / "deep" / "er"), mlx_tlstm.load(tmp_path / "empty"))


class TestAFolderThatIsThere:
    """It stays the same folder: it may be the current one, a mount point, or behind a link."""

    def test_empty(self, tmp_path, monkeypatch):
        model, folder = build(TLSTM(INPUT, HIDDEN, 2)), tmp_path / "model"
        folder.mkdir()
        identity = folder.stat().st_ino
        monkeypatch.chdir(folder)
        tmp_path.chmod(0o555)  # its parent need not be writable
        try:
            model.save(".")
        finally:
            tmp_path.chmod(0o755)
        assert folder.stat().st_ino == identity
        assert sorted(p.name for p in Path.cwd().iterdir()) == ["config.json", "model.safetensors"]
        check_same(mlx_tlstm.load("."), model)

    @pytest.mark.parametrize("present", [True, False])
    def test_link(self, present, tmp_path):
        model, target, link = build(TLSTM(INPUT, HIDDEN, 2)), tmp_path / "target", tmp_path / "link"
        if present:
            target.mkdir()
        link.symlink_to("target")
        model.save(link)
        assert link.is_symlink()
        check_same(mlx_tlstm.load(target), model)

    @pytest.mark.parametrize("failing", [1, 2])
    def test_an_error_leaves_nothing(self, failing, tmp_path, monkeypatch):
        model, calls, replace = build(TLSTM(INPUT, HIDDEN, 2)), [], os.replace

        def fail(source, target):
            calls.append(target)
            if len(calls) == failing:
                raise OSError(5, "Input/output error")
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", fail)
            with pytest.raises(OSError, match="Input/output error: "):
                model.save(tmp_path)
        assert not list(tmp_path.iterdir())
        model.save(tmp_path)

    def test_what_a_killed_process_left(self, tmp_path, monkeypatch):
        model = build(TLSTM(INPUT, HIDDEN, 2))
        with monkeypatch.context() as patch:
            patch.setattr("shutil.rmtree", lambda *_, **__: None)
            patch.setattr("mlx_tlstm.models.folder.sync", lambda path: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model.save(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
        model.save(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
        check_same(mlx_tlstm.load(tmp_path), model)


@pytest.fixture
def saved(tmp_path):
    model = build(TLSTM(INPUT, HIDDEN, (2, 3), norm="channel"))
    model.save(tmp_path / "model")
    return tmp_path / "model"


def drop(name):
    return lambda config: config.pop(name)


def put(name, value):
    return lambda config: config.update({name: value})


def argument(name, value):
    return lambda config: config["arguments"].update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("layer"), r"'config' must be complete: keys are missing but got \['layer'\]"),
        (drop("format"), r"keys are missing but got \['format'\]"),
        (put("format", 2), r"'format' must be 1 but got 2"),
        (put("code", "x"), r"'config' must be free of unknown keys but got \['code'\]"),
        (put("layer", "os.system"), r"'layer' must be one of 'TLSTM', 'TRNN', 'StackedLSTM'"),
        (put("layer", ["TLSTM"]), r"'layer' must be one of"),
        (put("layer", "TRNN"), r"'arguments' must be free of unknown keys but got \['memory"),
        (put("arguments", 3), r"'arguments' must be a JSON object but got 3"),
        (put("output_size", 0), r"'output_size' must be an integer of 1 or more"),
        (put("output_size", 3), r"readout\.bias' must be float32 \[3\].* but got 'float32 \[4\]'"),
        (put("dtype", "int8"), r"'dtype' must be one of 'float32'"),
        (put("dtype", "float16"), r"bias' must be float16 \[37\].* but got 'float32"),
        (put("metadata", []), r"'metadata' must be a JSON object but got \[\]"),
        (put("metadata", {"x": 1}), r"'metadata' must be free of unknown keys but got \['x'\]"),
        (put("metadata", {"symbols": [1, 256]}), r"'symbols' must be a list of numbers from 0"),
        (put("metadata", {"symbols": "ab"}), r"'symbols' must be a list of numbers from 0"),
        (put("metadata", {"symbols": [1, 2]}), r"'symbols' must be output_size 4 of them"),
        (argument("hidden_size", 8), r"must be float32 \[41\], as config\.json says, but got"),
        (argument("hidden_size", "8"), r"'hidden_size' must be an integer of 1 or more"),
        (argument("hidden_size", 10**30), r"must be of 2,147,483,647 elements or fewer"),
        (argument("tensor_size", [2, 4]), r"norm\.bias' must be float32 \[2, 4, 7\].* but got"),
        (argument("tensor_size", [2, 0]), r"'tensor_size' must be"),
        (argument("kernel_size", [3]), r"'kernel_size' must be"),
        (argument("norm", None), r"norm\.bias' must be absent, as config\.json says, but got"),
        (argument("norm", "batch"), r"'norm' must be one of None, 'channel', 'layer'"),
        (argument("memory_convolution", 1), r"'memory_convolution' must be True or False"),
        (
            argument("memory_convolution", False),
            r"bias' must be float32 \[28\].* got 'float32 \[37",
        ),
        (argument("forget_bias", 1.0), r"'arguments' must be free of unknown keys"),
    ],
)
def test_damaged_configuration(change, message, saved):
    file = saved / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        mlx_tlstm.load(saved)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000, b"[]"])
def test_no_configuration(text, saved):
    (saved / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"\[load\] '.*config\.json' (must hold JSON|is no model)"):
        mlx_tlstm.load(saved)


@pytest.mark.parametrize("size", [0, 7, 40, -1])
def test_cut_weights(size, saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors' must be a safetensors file but"):
        mlx_tlstm.load(saved)


def test_other_weights(saved):
    file = saved / "model.safetensors"
    arrays = mx.load(str(file))
    mx.eval(arrays)
    mx.save_safetensors(str(file), {**arrays, "more": mx.zeros(3)})
    with pytest.raises(ValueError, match=r": more' must be absent.* but got 'float32 \[3\]'"):
        mlx_tlstm.load(saved)
    del arrays["readout.bias"]
    mx.save_safetensors(str(file), arrays)
    with pytest.raises(ValueError, match=r"readout\.bias' must be float32 \[4\].* got 'absent'"):
        mlx_tlstm.load(saved)


def test_missing_files(saved, tmp_path):
    (saved / "config.json").unlink()
    with pytest.raises(ValueError, match=r"'path' must be a folder that holds config\.json"):
        mlx_tlstm.load(saved)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"'path' must be a folder that holds config\.json"):
        mlx_tlstm.load(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"^\[load\] there is no folder '.*gone'"):
        mlx_tlstm.load(tmp_path / "gone")
    with pytest.raises(ValueError, match="'weights' must be one of 'best', 'last'"):
        mlx_tlstm.load(saved, weights="first")


def quick(task, **settings):
    return TASKS[task].quick().replace(**TINY | settings)


@pytest.mark.parametrize(("variant", "weights"), [("slstm", "best"), ("3d-tlstm+cn", "last")])
def test_a_run(variant, weights, tmp_path):
    config = quick("addition", variant=variant, samples=24, dtype="bfloat16", recompute=True)
    training.fit(config, tmp_path / "run")
    run, _, expected = load_run(tmp_path / "run", weights)
    model = mlx_tlstm.load(tmp_path / "run", weights)
    assert not model.training
    check_same(expected, model)
    found = model.metadata
    assert (found.task, found.variant) == ("addition", variant)
    records = run.read_metrics()
    if weights == "best":
        test = json.loads((tmp_path / "run" / "test.json").read_text())
        assert test.pop("weights") == "best"
        assert found.metrics == {"split": "test", **test}
    else:
        assert found.metrics["samples"] == records[-1]["samples"]
        assert found.metrics["loss"] == records[-1]["evaluation_loss"]
    model.save(tmp_path / "model")
    check_same(model, mlx_tlstm.load(tmp_path / "model"))
    # It is the same folder as the run's, in all bytes.
    for name in ("config.json", "model.safetensors"):
        of_run = tmp_path / "run" / weights / name
        assert (tmp_path / "model" / name).read_bytes() == of_run.read_bytes()


def _step(model):
    adam = optimizers.Adam(1e-3)
    gradient = nn.value_and_grad(model, lambda x: model(x)[0].square().mean())
    adam.update(model, gradient(mx.ones((2, 3, model.layer.input_size)))[1])


def _in_place(model):
    model.readout.bias[0] = 1


@pytest.mark.parametrize("way", ["run", "folder", "result"])
def test_figures_of_other_weights_are_not_saved(way, tmp_path):
    result = training.fit(quick("addition", samples=8), tmp_path / "run")
    mlx_tlstm.load(tmp_path / "run").save(tmp_path / "folder")
    models = {"result": lambda: copy.deepcopy(result.model)}
    model_of = models.get(way, lambda: mlx_tlstm.load(tmp_path / way))
    expected = model_of().metadata
    assert expected.metrics["accuracy"] == result.test["accuracy"]
    names = map(str, itertools.count())

    def saved(model, metadata=None):
        folder = tmp_path / next(names)
        model.save(folder, metadata)
        return mlx_tlstm.load(folder).metadata

    for change in (
        lambda model: model.update({"readout": {"weight": mx.zeros(model.readout.weight.shape)}}),
        lambda model: model.set_dtype(mx.float16),
        _in_place,
        _step,
    ):
        model = model_of()
        assert saved(model).metrics == expected.metrics
        model.update(tree_map(lambda array: array + 0, model.parameters()))  # the same numbers
        assert (saved(model).metrics, saved(model).command) == (expected.metrics, expected.command)
        change(model)
        found = saved(model)
        assert (found.metrics, found.command, found.task) == ({}, None, "addition")
        assert saved(model, expected).metrics == expected.metrics
        own = dataclasses.replace(expected, metrics={"accuracy": 0.5})
        model.metadata = own
        assert saved(model).metrics == own.metrics


def test_a_language_models_run(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"\xffa tensor of cells " * 60)
    training.fit(quick("wikipedia", samples=24, data=str(text)), tmp_path / "run")
    model = mlx_tlstm.load(tmp_path / "run")
    assert task_of(model).symbols == bytes(sorted(set(text.read_bytes())))
    assert model.metadata.symbols == task_of(model).symbols
    moved = text.rename(tmp_path / "moved")
    assert mlx_tlstm.load(tmp_path / "run").metadata == model.metadata
    assert model.metadata.metrics["bpc"] > 0
    assert str(tmp_path) not in model.metadata.command
    with pytest.raises(FileNotFoundError, match="'data' must be a file"):
        task_of(model)
    assert task_of(model, moved).symbols == model.metadata.symbols
    model.save(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()
    saved = mlx_tlstm.load(tmp_path / "model")
    assert saved.metadata.training == model.metadata.training.replace(data="text")
    assert task_of(saved, moved).config.data == str(moved)


def test_the_task_of_a_model_fits_it(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"\xffa tensor of cells " * 60)
    training.fit(quick("wikipedia", samples=24, data=str(text)), tmp_path / "run")
    model = mlx_tlstm.load(tmp_path / "run")
    text.write_bytes(b"\xfea tensor of cells " * 60)
    with pytest.raises(ValueError, match="'data' must be of the symbols that the model knows"):
        task_of(model)
    text.write_bytes(b"\xff\xfea tensor of cells " * 60)
    with pytest.raises(ValueError, match=r"'data' must be .* with \(12, 12\) inputs and classes"):
        task_of(model)
    model.metadata = ModelMetadata()
    with pytest.raises(ValueError, match="'model' must be one that knows its training"):
        task_of(model)


def test_damaged_run(tmp_path):
    training.fit(quick("addition", samples=8), tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    with pytest.raises(ValueError, match=r"'run' must be a training run's folder, no model's"):
        RunFolder.open(run.path / "best")
    (run.path / "best" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"no model's \({re.escape(str(run.path))} is one\), but"):
        RunFolder.open(run.path / "best")
    with pytest.raises(ValueError, match=r"'weights' must be saved in the run .*; last is there"):
        mlx_tlstm.load(run.path)
    with pytest.raises(ValueError, match=r"'path' must be a folder that holds model\.safetensors"):
        mlx_tlstm.load(run.path / "best")
    run.config.replace(task="chess").save(run.path / "config.json")
    with pytest.raises(ValueError, match="'task' must be one of"):
        RunFolder.open(run.path)
    # A model needs no task, also where this program does not know it.
    assert mlx_tlstm.load(run.path, "last").metadata.training.task == "addition"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("{", "must hold JSON but"),
        ("[" * 100_000, "must hold JSON but"),
        ("[]", r"must be numbers and words by name but got \[\]"),
        ('{"loss": []}', "must be numbers and words by name but got"),
        ('{"loss": {"x": 1}}', "must be numbers and words by name but got"),
    ],
)
def test_damaged_metrics(metrics, message, saved):
    file = saved / "model.safetensors"
    arrays = mx.load(str(file))
    mx.eval(arrays)
    mx.save_safetensors(str(file), arrays, {"metrics": metrics})
    with pytest.raises(ValueError, match=r"^\[load\] '.*model\.safetensors: metrics' " + message):
        mlx_tlstm.load(saved)


def test_weights_without_metrics(saved):
    """As other programs write them."""
    file = saved / "model.safetensors"
    arrays = mx.load(str(file))
    mx.eval(arrays)
    mx.save_safetensors(str(file), arrays)
    assert mlx_tlstm.load(saved).metadata.metrics == {}


@pytest.mark.parametrize(
    "config",
    [
        TASKS["memorization"].quick(),
        TASKS["pmnist"].paper(),
        quick("wikipedia", data="/home/somebody/my text.xml", dtype="float16", recompute=True),
        quick("addition", kernel_size=2, forget_bias="lag", clip_norm=0.0, accumulate=2),
    ],
)
def test_training_command_gives_the_configuration(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []

    def stop(config, *_):
        found.append(config)
        raise ValueError("enough")

    monkeypatch.setattr(training, "prepare", stop)
    python, option, module, *words = shlex.split(training_command(config))
    assert (python, option, module) == ("python", "-m", "mlx_tlstm.train")
    CliRunner().invoke(main, ["train", *words])
    if config.data:
        config = config.replace(data="my text.xml")
    assert found == [config]


def test_no_command_takes_back_a_limit():
    assert training_command(quick("mnist", length=28, epochs=None, samples=100)) is None

"""Where the commands run: --device and --backend."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import click
import mlx.core as mx
import pytest
from click.testing import CliRunner
from tiny_tasks import tiny_settings, write_text

from mlx_tlstm import training
from mlx_tlstm.commands.devices import device_option
from mlx_tlstm.commands.main import main
from mlx_tlstm.kernels import dispatch
from mlx_tlstm.models import generation, hub

SIZES = ["--length", "2", "--depth", "2", "--hidden-size", "8", "--batch-size", "4"]
TINY = [*SIZES, "--samples", "8", "--eval-every", "8", "--out", "run"]
SECOND = mx.Device(mx.cpu, 1)


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Run ``mlx-tlstm …`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def gpu(monkeypatch):
    """A second device in the GPU's place, with Metal kernels."""
    select = mx.set_default_device

    def set_default_device(device):
        select(SECOND if device == mx.gpu else device)

    def kernel_backend():
        available = mx.default_device() == SECOND
        return ("metal", "") if available else (None, "it is the CPU")

    monkeypatch.setattr(mx, "is_available", lambda device: True)
    monkeypatch.setattr(mx, "set_default_device", set_default_device)
    monkeypatch.setattr(dispatch, "kernel_backend", kernel_backend)


@pytest.fixture
def backends(monkeypatch):
    """What training, evaluation and generation have in the layers that they run."""
    found = []
    real = training.train, training.evaluate, generation.generate

    def train(trainer, *rest):
        found.append(trainer.model.layer.cell.backend)
        return real[0](trainer, *rest)

    def evaluate(model, *rest, **options):
        found.append(model.layer.cell.backend)
        return real[1](model, *rest, **options)

    def generate(model, *rest):
        found.append(model.layer.cell.backend)
        return real[2](model, *rest)

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "evaluate", evaluate)
    monkeypatch.setattr("mlx_tlstm.commands.generation.generate_symbols", generate)
    return found


@pytest.mark.parametrize(
    ("option", "backend"),
    [
        ([], None),
        (["--backend", "auto"], None),
        (["--backend", "ops"], "ops"),
        (["--backend", "reference"], "reference"),
    ],
)
def test_the_backend_reaches_the_layer(option, backend, invoke, backends, tmp_path):
    text = write_text(tmp_path / "text")
    started = invoke("train", "wikipedia", *TINY, "--data", text, *option)
    assert started.exit_code == 0, started.output
    for command in (["evaluate", "run"], ["generate", "run", "--prompt", "a", "--length", 2]):
        result = invoke(*command, "--device", "cpu", *option)
        assert result.exit_code == 0, result.output
    assert backends == [backend] * 3
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert not {"device", "backend"} & set(stored)


REFUSALS = [
    (["--device", "gpu"], "Invalid value for '--device': MLX has no GPU here"),
    (["--backend", "metal"], "must be 'ops' or 'reference' here"),
    (["--backend", "cuda", "--device", "cpu"], "must be 'ops' or 'reference' here"),
    (["--backend", "gpu"], "is not one of 'auto', 'ops', 'metal', 'cuda', 'reference'"),
]


@pytest.mark.skipif(mx.is_available(mx.gpu), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        *((["train", *TINY], *refusal) for refusal in REFUSALS),
        *(([*words], *REFUSALS[1]) for words in (["train", "--resume", "run"], ["evaluate", "x"])),
        (["generate", "x"], *REFUSALS[0]),
    ],
)
def test_what_the_machine_lacks(command, options, message, invoke, tmp_path):
    result = invoke(*command, *options)
    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(mx.is_available(mx.gpu), reason="there is a GPU here")
@pytest.mark.parametrize("backend", ["cuda", "vulkan"])
@pytest.mark.parametrize(
    "command",
    [["train", *TINY], ["train", "--resume", "run"], ["evaluate", "x"], ["generate", "x"]],
)
def test_the_variable_names_what_the_machine_lacks(command, backend, invoke, monkeypatch, tmp_path):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, backend)
    result = invoke(*command)
    assert result.exit_code == 2
    line = result.output.splitlines()[-1]
    assert line.startswith("Error: Invalid value for MLX_TLSTM_BACKEND: ")
    assert line.endswith(f"but got '{backend}'")
    assert not any(tmp_path.iterdir())


def test_the_device_is_chosen_before_the_backend_and_for_this_call_only(invoke, gpu, monkeypatch):
    before = mx.default_device()
    arguments = ("train", *TINY, "--backend", "metal")
    assert "it is the CPU" in invoke(*arguments).output
    assert "it is the CPU" in invoke(*arguments, "--device", "cpu").output

    def run(config, out, workers, backend):
        raise RuntimeError(f"{backend} on {mx.default_device()}")

    monkeypatch.setattr(training, "prepare", run)
    assert str(invoke(*arguments, "--device", "gpu").exception) == f"metal on {SECOND}"
    assert "No such option" in invoke(*arguments, "--device", "gpu", "--none").output
    assert mx.default_device() == before


def test_scripts_share_the_device(gpu):
    @click.command()
    @device_option
    def seen():
        click.echo(str(mx.default_device()))

    assert CliRunner().invoke(seen, ["--device", "gpu"]).output == f"{SECOND}\n"
    assert CliRunner().invoke(seen, []).output == f"{mx.default_device()}\n"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_stacked_lstm_has_operations_only(command, invoke, monkeypatch, tmp_path):
    stacked = ["train", "--variant", "slstm", *TINY]
    if command == "evaluate":
        assert invoke(*stacked, "--backend", "ops").exit_code == 0
        assert invoke("evaluate", "run", "--backend", "ops").exit_code == 0
    monkeypatch.setattr(dispatch, "kernel_backend", lambda: ("metal", ""))
    arguments = stacked if command == "train" else ["evaluate", "run"]
    result = invoke(*arguments, "--backend", "metal")
    assert result.exit_code == 2
    assert "must be one of None, 'ops' but got 'metal'" in result.output
    assert (tmp_path / "run").exists() == (command == "evaluate")


def test_a_stopped_run_goes_on_where_it_ran(invoke, monkeypatch, tmp_path):
    def stopped(trainer, run, callbacks):
        command = f"python -m mlx_tlstm.train --resume {run.path}"
        raise training.TrainingInterrupted(f"to go on: {command}", signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", stopped)
        result = invoke("train", *TINY, "--backend", "ops", "--device", "cpu")
    assert result.exit_code == 128 + signal.SIGINT
    command = result.output.strip().rpartition("python -m mlx_tlstm.")[2].split()
    assert command == ["train", "--resume", "run", "--device", "cpu", "--backend", "ops"]
    assert invoke(*command).exit_code == 0


def test_from_python(tmp_path):
    config = tiny_settings(Path(), Path())("memorization", samples=8)
    result = training.fit(config, tmp_path / "run", backend="ops")
    assert result.model.layer.cell.backend == "ops"
    assert hub.load(tmp_path / "run").layer.cell.backend is None
    (tmp_path / "run" / "test.json").unlink()
    for wrong in ("metal", "fast"):
        with pytest.raises(ValueError, match=r"'backend' must be .*ops"):
            training.fit(config, tmp_path / "other", backend=wrong)
        with pytest.raises(ValueError, match=r"'backend' must be .*ops"):
            training.resume(tmp_path / "run", backend=wrong)
    assert not (tmp_path / "other").exists()

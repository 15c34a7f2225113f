"""Trackers, by stand-ins that note what is called, and by the real ones where installed."""

from __future__ import annotations

import json
import os
import sys
import types

import pytest
from click.testing import CliRunner
from processes import ROOT
from tiny_tasks import Stop, StopAt

from mlx_tlstm import training
from mlx_tlstm.commands.main import main
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.runs import RunFolder

SETTINGS = {"hidden_size": 8, "depth": 2, "length": 2, "batch_size": 4, "eval_every": 8}


class Recorder:
    """Notes its calls, and answers itself to each; ``failing`` names what raises."""

    def __init__(self):
        self.calls, self.failing = [], None

    def __getattr__(self, name):
        def call(*arguments, **named):
            self.calls.append((name, arguments, named))
            if name == self.failing:
                raise RuntimeError(f"no {name} today")
            return self

        return call

    def named(self, name):
        return [(arguments, named) for called, arguments, named in self.calls if called == name]


@pytest.fixture
def recorders(monkeypatch):
    """Stand-ins for all trackers, by package."""
    found = {}
    for package, functions in (
        ("tensorboardX", ["SummaryWriter"]),
        ("trackio", ["init", "log", "finish"]),
        ("wandb", ["init"]),
    ):
        recorder, module = Recorder(), types.ModuleType(package)
        for name in functions:
            setattr(module, name, getattr(recorder, name))
        monkeypatch.setitem(sys.modules, package, module)
        found[package] = recorder
    return found


def _config(**changes):
    return TASKS["memorization"].quick().replace(**{**SETTINGS, "samples": 24, **changes})


def _fit(name, folder, config=None):
    """The run's records, which is what the tracker has to get."""
    training.fit(config or _config(), folder, [training.make_tracker(name, folder)])
    records = RunFolder.open(folder).read_metrics()
    assert [record["step"] for record in records] == [2, 4, 6]
    return records


def _numbers(record):
    return {name: value for name, value in record.items() if name not in ("step", "split")}


def test_tensorboard(recorders, tmp_path):
    records = _fit("tensorboard", tmp_path / "run")
    recorder = recorders["tensorboardX"]
    folder = str(tmp_path / "run" / "tensorboard")
    assert recorder.named("SummaryWriter") == [((folder,), {"purge_step": 1})]
    [((name, text, step), _)] = recorder.named("add_text")
    assert (name, step) == ("config", 0)
    shown = json.loads(text)
    assert shown.pop("parameters") == training.Trainer(_config()).parameter_count
    assert shown == json.loads((tmp_path / "run" / "config.json").read_text())
    scalars = [arguments for arguments, _ in recorder.named("add_scalar")]
    expected = [
        (name, value, record["step"])
        for record in records
        for name, value in _numbers(record).items()
    ]
    assert scalars == expected
    assert {"loss", "clip_rate", "accuracy", "evaluation_loss"} <= {name for name, *_ in scalars}
    assert recorder.calls[-1][0] == "close"


def test_trackio(recorders, tmp_path):
    records = _fit("trackio", tmp_path / "run")
    recorder = recorders["trackio"]
    [(_, named)] = recorder.named("init")
    assert named.pop("config")["variant"] == "3d-tlstm+cn"
    assert named == {"project": "mlx-tlstm", "name": "run", "resume": "never"}
    logged = [(*arguments, named["step"]) for arguments, named in recorder.named("log")]
    assert logged == [(_numbers(record), record["step"]) for record in records]
    assert recorder.calls[-1][0] == "finish"


def test_wandb(recorders, tmp_path):
    records = _fit("wandb", tmp_path / "run")
    recorder = recorders["wandb"]
    [(_, named)] = recorder.named("init")
    assert named.pop("config")["task"] == "memorization"
    identity = named.pop("id")
    folder = str((tmp_path / "run").resolve())
    assert named == {"project": "mlx-tlstm", "name": "run", "dir": folder, "resume": None}
    assert recorder.named("define_metric") == [(("*",), {"step_metric": "step"})]
    logged = [numbers for (numbers,), _ in recorder.named("log")]
    assert logged == [{**_numbers(record), "step": record["step"]} for record in records]
    assert recorder.calls[-1][0] == "finish"
    _fit("wandb", tmp_path / "other")
    assert recorder.named("init")[1][1]["id"] != identity
    _fit("wandb", tmp_path / os.fsdecode(b"no text \xff"))


def test_resumed_run_is_the_same_one(recorders, tmp_path):
    config = _config(checkpoint_every=2)
    for name in training.TRACKERS:
        folder = tmp_path / name
        tracker = training.make_tracker(name, folder)
        with pytest.raises(Stop):
            training.fit(config, folder, [tracker, StopAt(5)])
        training.resume(folder, [training.make_tracker(name, folder)])
    (_, first), (_, second) = recorders["tensorboardX"].named("SummaryWriter")
    assert (first["purge_step"], second["purge_step"]) == (1, 5)
    assert len(recorders["tensorboardX"].named("add_text")) == 1
    (_, first), (_, second) = recorders["trackio"].named("init")
    assert (first["resume"], second["resume"]) == ("never", "allow")
    assert first["name"] == second["name"]
    (_, first), (_, second) = recorders["wandb"].named("init")
    assert (first["resume"], second["resume"]) == (None, "allow")
    assert first["id"] == second["id"]
    for recorder, end in (("tensorboardX", "close"), ("trackio", "finish"), ("wandb", "finish")):
        assert len(recorders[recorder].named(end)) == 2


@pytest.mark.parametrize(
    ("name", "package", "call"),
    [("tensorboard", "tensorboardX", "flush"), ("trackio", "trackio", "log")],
)
def test_failure_on_the_way_does_not_stop_training(
    recorders, tmp_path, capsys, name, package, call
):
    recorders[package].failing = call
    _fit(name, tmp_path / "run")
    assert len(recorders[package].named(call)) == 1
    warnings = capsys.readouterr().err.splitlines()
    assert warnings == [
        f"Warning: {package} failed (RuntimeError: no {call} today); "
        "the rest of the run is not tracked"
    ]


def test_failure_at_the_end(recorders, tmp_path, capsys):
    recorders["wandb"].failing = "finish"
    _fit("wandb", tmp_path / "run")
    assert "the end of the run may not be tracked" in capsys.readouterr().err


def _train(*options):
    return CliRunner().invoke(
        main,
        ["train", "memorization", "--samples", "8", "--hidden-size", "8", "--depth", "2", *options],
    )


def test_command(recorders, tmp_path):
    done = _train("--out", str(tmp_path / "run"), "--track", "trackio", "--batch-size", "4")
    assert done.exit_code == 0, done.output
    assert len(recorders["trackio"].named("log")) == 1
    recorders["wandb"].failing = "init"
    done = _train("--out", str(tmp_path / "other"), "--track", "wandb")
    assert done.exit_code == 1
    message = "[WeightsAndBiases] wandb cannot track the run (RuntimeError: no init today)"
    assert message in done.output


def test_off_by_default(recorders, tmp_path):
    assert _train("--out", str(tmp_path / "run")).exit_code == 0
    assert not any(recorder.calls for recorder in recorders.values())


@pytest.mark.parametrize(("name", "kind"), training.TRACKERS.items())
def test_install_hint(monkeypatch, tmp_path, name, kind):
    monkeypatch.setitem(sys.modules, kind.package, None)
    done = _train("--out", str(tmp_path / "run"), "--track", name)
    assert done.exit_code == 2
    assert f"pip install {kind.package}" in " ".join(done.output.split())
    assert not (tmp_path / "run").exists()


def test_unknown_tracker(tmp_path):
    with pytest.raises(ValueError, match="'track' must be one of 'tensorboard', 'trackio'"):
        training.make_tracker("mlflow", tmp_path)


def test_extras_install_the_packages():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for name, kind in training.TRACKERS.items():
        assert any(entry.startswith(kind.package) for entry in extras.get(name, [])), name


def test_real_tensorboard_files(tmp_path):
    """What tensorboardX wrote, read back by TensorBoard itself."""
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    records = _fit("tensorboard", tmp_path / "run")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("loss", "accuracy"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(record["step"], pytest.approx(record[name])) for record in records]
        assert found == expected

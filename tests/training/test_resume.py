"""Runs that were killed or stopped end as if they had not been."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from kill_and_resume import check_models, outcome, start
from mixed_cell import MIXED, NAME
from processes import ROOT, wait_for_records
from tiny_tasks import Stop, StopAt, write_images, write_text

from mlx_tlstm import VARIANTS, load, training
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.runs import RunFolder, RunInUseError

STEPS = 12
OFTEN = {"samples": 48, "checkpoint_every": 3, "checkpoint_seconds": 0}
CLOCKED = {"samples": 48, "checkpoint_seconds": 0.01}
#: What is trained: each task, and a cell of a user's own.
RUNS = {task: {"task": task} for task in TASKS} | {
    NAME: {"task": "wikipedia", "variant": NAME, "depth": 1, "accumulate": 2}
}
#: Kills of each task's process in the long check.
KILLS = 40


@pytest.fixture(autouse=True)
def variants(monkeypatch):
    monkeypatch.setitem(VARIANTS, NAME, MIXED)


def signalled(number, times=1):
    """A callback that sends this process a signal after a step."""

    class Send(training.Callback):
        def on_step(self, trainer, report):
            if trainer.step == 5:
                for _ in range(times):
                    signal.raise_signal(number)

    return Send()


def killed(config, run, kill_at):
    """Train, or go on, and kill at the number; whether that came before the end."""
    process = start(config, run, kill_at)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), err
    check_models(run)
    return process.returncode != 0, out


def finish(config, run):
    if not (run / "test.json").exists():
        if (run / "config.json").exists():
            training.resume(run)
        else:
            training.fit(config, run)


def reference(config, folder):
    """A run that was never stopped, in a process of its own, and how much it does to files."""
    path = folder / "config"
    config.save(path)
    begin = time.perf_counter()
    was_killed, out = killed(path, folder / "whole", 0)
    assert not was_killed
    return path, outcome(folder / "whole"), int(out), time.perf_counter() - begin


@pytest.mark.parametrize("run_of", RUNS)
def test_killed_while_writing(run_of, settings, tmp_path):
    """One kill in the run, and one in what goes on with it, anywhere in their work on files."""
    config = settings(**RUNS[run_of], **OFTEN)
    path, expected, operations, _ = reference(config, tmp_path)
    rng = random.Random(run_of)
    run = tmp_path / "run"
    first = rng.randrange(operations // 4, operations)
    assert killed(path, run, first)[0]
    killed(path, run, rng.randrange(1, operations // 2))
    finish(config, run)
    assert outcome(run) == expected
    assert not list(run.rglob(".writing-*"))


def test_killed_while_going_back_to_a_checkpoint(settings, tmp_path, monkeypatch):
    """What an evaluation after the checkpoint left goes, the model before its record."""

    class Copy(training.Callback):
        def on_evaluation(self, record):
            if record["step"] == 5:
                shutil.copytree(tmp_path / "run", tmp_path / "cut")

    config = settings("memorization", samples=24, eval_every=4, checkpoint_every=4)
    config = config.replace(checkpoint_seconds=0)
    training.fit(config, tmp_path / "run", [Copy()])
    expected, replace = outcome(tmp_path / "run"), training.disk.replace_file
    for files in itertools.count():
        run, left = tmp_path / f"cut{files}", iter(range(files))
        shutil.copytree(tmp_path / "cut", run)

        def replace_some(path, write, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace(path, write)

        monkeypatch.setattr(training.disk, "replace_file", replace_some)
        try:
            training.resume(run)
        except KeyboardInterrupt:
            check_models(run)
        else:
            break
        finally:
            monkeypatch.setattr(training.disk, "replace_file", replace)
    assert files >= 3  # the records and two models
    finish(config, tmp_path / "cut0")
    assert outcome(tmp_path / "cut0") == expected


@pytest.mark.slow
@pytest.mark.parametrize("run_of", RUNS)
def test_killed_at_random_moments(run_of, settings, tmp_path):
    """Half of the kills come at a random operation on files, half at a random time."""
    rng = random.Random(run_of)
    plans = {}
    for name, changes in (("often", {**OFTEN, "checkpoint_every": 1}), ("clocked", CLOCKED)):
        (tmp_path / name).mkdir()
        config = settings(**RUNS[run_of], **changes)
        plans[name] = (config, *reference(config, tmp_path / name))
    kills = 0
    for trial in itertools.count():
        config, path, expected, operations, seconds = plans[("often", "clocked")[trial % 2]]
        run = tmp_path / f"run{trial}"
        for _ in range(3):
            if rng.random() < 0.5:
                kills += killed(path, run, rng.randrange(1, operations))[0]
            else:
                process = start(path, run)
                time.sleep(rng.uniform(0, seconds / 2))
                process.kill()
                _, err = process.communicate(timeout=120)
                assert process.returncode in (0, -signal.SIGKILL), err
                check_models(run)
                kills += process.returncode != 0
            if (run / "test.json").exists():
                break
        finish(config, run)
        assert outcome(run) == expected
        if kills >= KILLS:
            break
    print(f"{run_of}: {kills} kills in {trial + 1} runs")


@pytest.mark.parametrize("run_of", RUNS)
def test_stopped_anywhere(run_of, settings, tmp_path):
    config = settings(**RUNS[run_of], **OFTEN)
    training.fit(config, tmp_path / "whole")
    run, expected = tmp_path / "run", outcome(tmp_path / "whole")
    with pytest.raises(Stop):
        training.fit(config, run, [StopAt(steps=5)])
    with pytest.raises(Stop):
        training.resume(run, [StopAt(steps=7)])
    with pytest.raises(Stop):
        training.resume(run, [StopAt(evaluations=1)])
    mx.random.seed(99)
    last = StopAt()
    result = training.resume(run, [last])
    assert outcome(run) == expected
    assert len(last.steps) == 3  # from the checkpoint of step 9 on
    assert result.last == last.records[-1] == RunFolder.open(run).read_metrics()[-1]
    assert result.best in RunFolder.open(run).read_metrics()


@pytest.mark.parametrize(
    ("dtype", "variant"),
    [("float16", "2d-tlstm+cn"), ("bfloat16", "slstm"), ("bfloat16", "2d-trnn")],
)
def test_stopped_in_half_precision(dtype, variant, settings, tmp_path):
    config = settings("wikipedia", dtype=dtype, variant=variant, **OFTEN)
    training.fit(config, tmp_path / "whole")
    with pytest.raises(Stop):
        training.fit(config, tmp_path / "run", [StopAt(steps=8)])
    training.resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_killed_before_the_first_checkpoint(settings, tmp_path):
    config, run = settings("addition", **OFTEN), tmp_path / "run"
    training.fit(config, tmp_path / "whole")
    RunFolder.create(run, config)
    training.resume(run)
    assert outcome(run) == outcome(tmp_path / "whole")


def test_checkpoints_change_nothing(settings, tmp_path):
    for name, changes in (
        ("none", {"checkpoint_seconds": 0}),
        ("clock", {"checkpoint_seconds": 1e-9}),
        ("steps", {"checkpoint_every": 1}),
    ):
        training.fit(settings("wikipedia", **changes), tmp_path / name)
    assert outcome(tmp_path / "none") == outcome(tmp_path / "clock") == outcome(tmp_path / "steps")


@pytest.mark.parametrize(
    ("number", "times"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGHUP, 1), (signal.SIGHUP, 3)],
)
def test_signals(number, times, settings, tmp_path):
    config, run = settings("wikipedia", samples=48), tmp_path / "run"
    training.fit(config, tmp_path / "whole")
    handler = signal.getsignal(number)
    with pytest.raises(training.TrainingInterrupted, match=r"after 20 samples.*--resume") as caught:
        training.fit(config, run, [signalled(number, times)])
    assert caught.value.signal_number == number
    assert signal.getsignal(number) is handler
    last = StopAt()
    training.resume(run, [last])
    assert len(last.steps) == STEPS - 5
    assert last.notes == ["Going on after 20 samples"]
    assert outcome(run) == outcome(tmp_path / "whole")


def test_stopped_in_the_test(settings, tmp_path, monkeypatch):
    """The model holds the best weights by then; the checkpoint must hold the last ones."""
    config, run = settings("mnist", samples=48), tmp_path / "run"
    training.fit(config, tmp_path / "whole")

    class Send(training.Callback):
        def on_evaluation(self, record):
            if record["samples"] == 48:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(training.TrainingInterrupted, match="after 48 samples"):
        training.fit(config, run, [Send()])
    last = StopAt()
    training.resume(run, [last])
    assert last.steps == []
    assert outcome(run) == outcome(tmp_path / "whole")


def test_second_sigterm_is_at_once(settings, tmp_path):
    code = (
        "import signal, sys; from mlx_tlstm import training; from mlx_tlstm.config import *\n"
        "class Send(training.Callback):\n"
        "    def on_step(self, trainer, report):\n"
        "        signal.raise_signal(signal.SIGTERM); print('held', flush=True)\n"
        "        signal.raise_signal(signal.SIGTERM); print('never')\n"
        "training.fit(TrainingConfig.load(sys.argv[1]), sys.argv[2], [Send()])"
    )
    settings("memorization").save(tmp_path / "config")
    arguments = [sys.executable, "-c", code, tmp_path / "config", tmp_path / "run"]
    process = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert process.returncode == -signal.SIGTERM, process.stderr
    assert process.stdout == "held\n"


def test_seconds_go_on(settings, tmp_path):
    config, run = settings("addition", **OFTEN), tmp_path / "run"
    with pytest.raises(Stop):
        training.fit(config, run, [StopAt(steps=6)])
    newest = max((run / "checkpoints").iterdir())
    state = json.loads((newest / "state.json").read_text())
    state["seconds"] += 1000
    _rewrite(newest, "state.json", json.dumps(state).encode())
    result = training.resume(run)
    records = RunFolder.open(run).read_metrics()
    assert [record["seconds"] > 1000 for record in records] == [False] + [True] * 5
    assert result.seconds >= records[-1]["seconds"]


def _rewrite(checkpoint, name, content):
    """Change a file and the manifest with it."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_random_key_goes_on(settings, tmp_path):
    keys = []

    class Look(StopAt):
        def on_start(self, trainer):
            keys.append(np.array(mx.random.state[0]).tolist())

    config = settings("addition", **OFTEN)
    with pytest.raises(Stop):
        training.fit(config, tmp_path / "run", [Look(steps=1)])
    mx.random.seed(7)
    training.resume(tmp_path / "run", [Look()])
    assert keys[0] == keys[1]


def test_a_run_that_ended_is_refused(settings, tmp_path):
    config, run = settings("addition"), tmp_path / "run"
    training.fit(config, run)
    trainer = training.Trainer(config)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    before.pop(run / ".lock")
    for go_on in (
        lambda: training.resume(run),
        lambda: training.train(trainer, RunFolder.open(run)),
    ):
        with pytest.raises(ValueError, match=r"'run' must be a run that has not ended"):
            go_on()
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    after.pop(run / ".lock")
    assert before == after


def test_a_run_in_use_is_refused(settings, tmp_path):
    """By another process, whose number is given, and by this one."""
    run = tmp_path / "run"
    config = settings("addition", samples=10**9)
    config.save(tmp_path / "config")
    process = start(tmp_path / "config", run)
    try:
        wait_for_records(process, run, 1)
        with pytest.raises(
            RunInUseError, match=rf"but process {process.pid} trains in .*run'; wait"
        ):
            training.resume(run)
    finally:
        process.kill()
        process.communicate()
    trainer, folder = training.reopen(run)
    with folder.lock(), pytest.raises(RunInUseError, match="trains in"):
        training.train(trainer, folder)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks(number, settings, tmp_path, monkeypatch):
    """As some network drives are: the file is named, and for lack of locks what to do."""

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match=r"run/\.lock'$") as caught:
        training.fit(settings("addition"), tmp_path / "run")
    assert ("take a folder on a local disk" in str(caught.value)) == (number != errno.EIO)


def test_a_terminal_that_takes_no_more_words(settings, tmp_path):
    """What a callback prints fails once the terminal is closed; the signal came before."""

    class Print(training.Callback):
        def on_step(self, trainer, report):
            if trainer.step == 5:
                signal.raise_signal(signal.SIGHUP)
                raise OSError(errno.EIO, "Input/output error")

    config, run = settings("addition", samples=48), tmp_path / "run"
    with pytest.raises(training.TrainingInterrupted, match="Terminal closed after 20 samples"):
        training.fit(config, run, [Print()])
    last = StopAt()
    training.resume(run, [last])
    assert len(last.steps) == STEPS - 5
    training.fit(config, tmp_path / "whole")
    assert outcome(run) == outcome(tmp_path / "whole")


def _files(run):
    """What is in a run's folder, but for the number of the process that looked last."""
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("task", ["wikipedia", "mnist"])
def test_data_and_run_that_have_moved(task, settings, tmp_path, monkeypatch):
    (tmp_path / "before").mkdir()
    (tmp_path / "mnist").mkdir()
    text, images = write_text(tmp_path / "before" / "text"), write_images(tmp_path / "mnist")
    data = images if task == "mnist" else text
    config = settings(task, data=str(data), **OFTEN)
    training.fit(config, tmp_path / "whole")
    with pytest.raises(Stop):
        training.fit(config, tmp_path / "run", [StopAt(steps=4)])
    (tmp_path / "after").mkdir()
    monkeypatch.chdir(tmp_path / "after")
    data.rename("data")
    run = (tmp_path / "run").rename(tmp_path / "after" / "moved")
    before = _files(run)
    with pytest.raises(FileNotFoundError, match=r"missing; --data, or data=, says where it is now"):
        training.resume("moved")
    with pytest.raises(FileNotFoundError, match=r"gone' is missing$"):
        training.resume("moved", data="gone")
    assert _files(run) == before
    with pytest.raises(Stop):
        training.resume("moved", [StopAt(steps=4)], data="data")
    assert RunFolder.open("moved").config == config.replace(data=str(tmp_path / "after" / "data"))
    monkeypatch.chdir(tmp_path)
    training.resume(run)
    assert outcome(run) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda raw: raw.upper(), r"its symbols are not those of .*best/config\.json"),
        (lambda raw: raw + b"\xff", r"its symbols are not those of .*best/config\.json"),
        (lambda raw: raw[:40], r"'data' must hold at least"),
    ],
)
def test_other_data_is_refused(other, message, trained, settings, tmp_path):
    text = write_text(tmp_path / "text")
    config, run = settings("wikipedia", data=str(text), **OFTEN), tmp_path / "run"
    if trained:
        with pytest.raises(Stop):
            training.fit(config, run, [StopAt(steps=4)])
    else:
        RunFolder.create(run, config).describe_model(training.Trainer(config).model)
    before = _files(run)
    (tmp_path / "other").write_bytes(other(text.read_bytes()))
    with pytest.raises(ValueError, match=message):
        training.resume(run, data=tmp_path / "other")
    assert _files(run) == before
    training.resume(run, data=text)


@pytest.mark.parametrize("task", ["wikipedia", "mnist"])
def test_other_data_of_the_same_kind_is_refused(task, settings, tmp_path):
    config, run = settings(task, **OFTEN), tmp_path / "run"
    with pytest.raises(Stop):
        training.fit(config, run, [StopAt(steps=4)])
    before, data = _files(run), Path(config.data)
    other = tmp_path / "other"
    if task == "wikipedia":
        other.write_bytes(data.read_bytes()[::-1])
    else:
        shutil.copytree(data, other)
        file = other / "train-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:16] + bytes(60 * 28 * 28))
    message = r"that in '.*other' is not: batch 3 differs from the one that checkpoint .* expects"
    with pytest.raises(training.CheckpointError, match=message):
        training.resume(run, data=other)
    assert _files(run) == before


def test_data_of_a_task_without(settings, tmp_path):
    with pytest.raises(Stop):
        training.fit(settings("addition", **OFTEN), tmp_path / "run", [StopAt(steps=4)])
    before = _files(tmp_path / "run")
    with pytest.raises(ValueError, match="'data' must be None"):
        training.resume(tmp_path / "run", data=tmp_path)
    assert _files(tmp_path / "run") == before


@pytest.mark.parametrize("changed", ["training", "evaluation"])
def test_changed_data_is_refused(changed, settings, tmp_path):
    text = write_text(tmp_path / "text")
    config = settings("wikipedia", data=str(text), **OFTEN)
    with pytest.raises(Stop):
        training.fit(config, tmp_path / "run", [StopAt(steps=4)])
    before, data = _files(tmp_path / "run"), text.read_bytes()
    text.write_bytes(data[::-1] if changed == "training" else data[:-2] + data[:-3:-1])
    with pytest.raises(training.CheckpointError, match="the data must be what the run was trained"):
        training.resume(tmp_path / "run")
    assert _files(tmp_path / "run") == before
    text.write_bytes(data)
    training.resume(tmp_path / "run")


ANOTHER = {
    "width": ({}, {"hidden_size": 9}, r"'hidden_size' must be 8, "),
    "type": ({}, {"dtype": "bfloat16"}, r"'dtype' must be float32, "),
    "tensor": ({"variant": "2d-tlstm"}, {"depth": 3}, r"'tensor_size' must be [2], "),
    "layers": ({"variant": "slstm"}, {"depth": 3}, r"'depth' must be 2, "),
    "norm": ({"variant": "2d-tlstm+cn"}, {"variant": "2d-tlstm"}, r"'variant' must be 2d-tlstm+cn"),
    "kind": ({"variant": "2d-tlstm-m"}, {"variant": "slstm"}, r"'variant' must be 2d-tlstm-m, "),
    "cell": ({"variant": "grid-lstm"}, {"variant": "stacked-lstm"}, r"'variant' must be grid-"),
}


@pytest.mark.parametrize(
    ("name", "edited"),
    [*(("seed", 7), ("forget_bias", 5.0), ("length", 11)), ("batch_size", 2), ("task", "addition")],
)
def test_settings_that_no_longer_count_are_refused(name, edited, settings, tmp_path):
    """Not taken and written down as what the model was trained with, nor called other data."""
    config, run = settings("wikipedia", **OFTEN), tmp_path / "run"
    with pytest.raises(Stop):
        training.fit(config, run, [StopAt(steps=4)])
    changes = {"data": None, "epochs": None} if name == "task" else {}
    config.replace(**{name: edited}, **changes).save(run / "config.json")
    files, before = _files(run), getattr(config, name)
    message = f"[RunOnDisk] '{name}' must be {before}, as "
    with pytest.raises(training.CheckpointError, match=re.escape(message)):
        training.resume(run)
    assert _files(run) == files


@pytest.mark.parametrize("name", ANOTHER)
def test_another_network_is_refused(name, settings, tmp_path):
    """Also where the weights of both have the same shapes."""
    before, after, message = ANOTHER[name]
    config, run = settings("addition", **OFTEN, **before), tmp_path / "run"
    with pytest.raises(Stop):
        training.fit(config, run, [StopAt(steps=4)])
    config.replace(**after).save(run / "config.json")
    files = _files(run)
    with pytest.raises(training.CheckpointError, match=re.escape(message)):
        training.resume(run)
    assert _files(run) == files
    if name == "type":
        config.save(run / "config.json")
        training.resume(run)


def test_edited_settings_leave_no_command(settings, tmp_path):
    """Models say what they were trained with, and name no command that trains in another way."""
    config, run = settings("addition", **OFTEN), tmp_path / "run"

    def origins():
        return [load(path).metadata for path in (run, run / "best", run / "last")]

    with pytest.raises(Stop):
        training.fit(config, run, [StopAt(steps=4)])
    before = origins()[0]
    assert before.training == config
    assert before.command is not None
    edited = config.replace(learning_rate=0.01, beta2=0.9)
    edited.save(run / "config.json")
    assert origins()[0] == before
    with pytest.raises(Stop):
        training.resume(run, callbacks=[StopAt(steps=2)])
    assert {(origin.training, origin.command) for origin in origins()} == {(edited, None)}
    result = training.resume(run)
    assert {(origin.training, origin.command) for origin in origins()} == {(edited, None)}
    assert result.model.metadata.command is None
    (tmp_path / "whole").mkdir()
    with pytest.raises(Stop):
        training.fit(config, tmp_path / "whole", [StopAt(steps=4)])
    assert training.resume(tmp_path / "whole").model.metadata.command == before.command


def test_a_run_may_go_on_with_less_memory(settings, tmp_path):
    config, run = settings("addition", **OFTEN), tmp_path / "run"
    with pytest.raises(Stop):
        training.fit(config, run, [StopAt(steps=4)])
    config.replace(recompute=True).save(run / "config.json")
    assert training.resume(run).last["samples"] == config.samples


def test_a_damaged_model_of_the_run_is_refused(settings, tmp_path):
    """At the start of what is left of the run, or at its end, where the best weights are tested."""
    config, run = settings("addition", **OFTEN), tmp_path / "run"
    with pytest.raises(Stop):
        training.fit(config, run, [StopAt(steps=4)])
    whole = (run / "best" / "config.json").read_text()
    (run / "best" / "config.json").write_text("{")
    with pytest.raises(training.CheckpointError, match=r"best/config.json' must hold JSON"):
        training.resume(run)
    (run / "best" / "config.json").write_text(whole)

    class Damage(training.Callback):
        def on_evaluation(self, _):
            (run / "best" / "model.safetensors").write_bytes(b"")

    with pytest.raises(training.CheckpointError, match=r"best/model.safetensors"):
        training.resume(run, callbacks=[Damage()])

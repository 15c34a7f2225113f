"""Sweeps of training runs: planned, trained once, shared, stopped and read again."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
import subprocess
import sys

import pytest
from experiments.paper import TABLES
from experiments.planned import PlannedRun, check_runs
from experiments.results import read_origin, read_result, record_origin
from experiments.sweep import CLAIMS, sweep
from filelock import FileLock
from kill_and_resume import outcome
from processes import CHILDREN, ROOT
from tiny_tasks import TINY, write_run, write_text

from mlx_tlstm import training
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.divergence import NonFiniteError
from mlx_tlstm.training.runs import RunFolder
from mlx_tlstm.training.trainer import Trainer

#: A sweep in a process of its own: of the configurations in a folder, by name, into another. It
#: kills itself before a step, counted over all runs from 1; 0 is none.
PROGRAM = """
import os, signal, sys
from pathlib import Path
import mlx_tlstm
import mlx.core as mx
from experiments.planned import PlannedRun
from experiments.sweep import sweep
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.training.trainer import Trainer

mx.set_default_device(mx.cpu)
left = int(sys.argv[3])
train_step = Trainer.train_step
def step(trainer):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(trainer)
Trainer.train_step = step
runs = [PlannedRun(p.stem, TrainingConfig.load(p)) for p in sorted(Path(sys.argv[1]).iterdir())]
print("started", flush=True)
sys.exit(0 if sweep(runs, Path(sys.argv[2]), "again") else 3)
"""


@pytest.fixture
def trained(monkeypatch):
    """Names of the folders that training was called for, in order."""
    names = []
    train = training.train

    def counted(trainer, run, callbacks=()):
        names.append(run.path.name)
        return train(trainer, run, callbacks)

    monkeypatch.setattr(training, "train", counted)
    return names


def runs_of(settings, *tasks, **changes):
    return [PlannedRun.of(settings(task, **changes)) for task in tasks]


def start(runs, folder, kill_at=0):
    """A sweep's process, past its imports."""
    configs = folder / "configs"
    configs.mkdir(exist_ok=True)
    for run in runs:
        run.config.save(configs / f"{run.name}.json")
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, str(configs), str(folder / "out"), str(kill_at)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}:{CHILDREN}", "PATH": "/usr/bin:/bin"},
    )
    assert process.stdout.readline() == "started\n", process.communicate()[1]
    return process


def signal_at(monkeypatch, number, step):
    """Send this process a signal before a step, counted over all runs from 1."""
    train_step, steps = Trainer.train_step, itertools.count(1)

    def counted(trainer):
        if next(steps) == step:
            signal.raise_signal(number)
        return train_step(trainer)

    monkeypatch.setattr(Trainer, "train_step", counted)


def test_names():
    quick = TASKS["memorization"].quick()
    assert PlannedRun.of(quick).name == "memorization-3d-tlstm+cn-L4-s0-forget2"
    config = quick.replace(variant="2d-tlstm+cn", forget_bias=1.0)
    assert PlannedRun.of(config).name == "memorization-2d-tlstm+cn-L4-s0"
    changed = config.replace(clip_norm=0, clip_value=0.5, seed=3, depth=2)
    assert PlannedRun.of(changed).name == "memorization-2d-tlstm+cn-L2-s3-clip0-clipvalue0.5"
    ways = {"forget_bias": "lag", "beta2": 0.99, "clip_value": 1.0}
    name = "starts-2d-tlstm+cn-L4-s0-forgetlag-beta0.99-clipvalue1"
    assert PlannedRun.of(config.replace(**ways), "starts").name == name


def test_trains_each_once(settings, tmp_path, trained, capsys):
    runs = runs_of(settings, "addition", "wikipedia", "memorization")
    assert sweep([*runs, runs[0]], tmp_path, "again")
    assert trained == [run.name for run in runs]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 runs"
    assert lines[1].startswith(f"1 of 3  {runs[0].name}")
    assert "% (test), 24 samples, 00:0" in lines[1]
    assert "bits per character (validation)" in lines[2]
    assert len(lines) == 4
    assert sweep(runs, tmp_path, "again")
    assert len(trained) == 3
    assert capsys.readouterr().out == "3 runs, 3 of which ended before\n"
    for run in runs:
        training.fit(run.config, tmp_path / "alone" / run.name)
        assert outcome(tmp_path / run.name) == outcome(tmp_path / "alone" / run.name)
        [machine] = read_origin(tmp_path / run.name)["machines"]
        assert {"processor", "mlx", "commit"} <= machine.keys()
    assert read_result(tmp_path / runs[1].name).note == "N = 4 streams"


def test_stopped_and_going_on(settings, tmp_path, trained, monkeypatch):
    runs = runs_of(settings, "addition", "memorization", "mnist")
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGINT, step=9)  # of six a run
        with pytest.raises(
            training.TrainingInterrupted, match=r"Interrupted with 1 of 3.*on: again"
        ) as caught:
            sweep(runs, tmp_path, "again")
    assert caught.value.signal_number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is handler
    assert [read_result(tmp_path / run.name) is None for run in runs] == [False, False, True]
    assert read_result(tmp_path / runs[1].name).state == "unfinished"
    assert sweep(runs, tmp_path, "again")
    assert trained == [runs[n].name for n in (0, 1, 1, 2)]
    for run in runs:
        training.fit(run.config, tmp_path / "alone" / run.name)
        assert outcome(tmp_path / run.name) == outcome(tmp_path / "alone" / run.name)


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGTERM, "Terminated"), (signal.SIGHUP, "Terminal closed")]
)
def test_stopped_between_runs(number, word, settings, tmp_path, monkeypatch):
    """They would otherwise kill at once where no training holds them back."""
    runs = runs_of(settings, "addition", "memorization")
    prepare = training.prepare

    def stopped(config, out, **options):
        if config.task == "memorization":
            signal.raise_signal(number)
        return prepare(config, out, **options)

    monkeypatch.setattr(training, "prepare", stopped)
    handler = signal.getsignal(number)
    with pytest.raises(training.TrainingInterrupted, match=f"{word} with 1 of 2 runs ended"):
        sweep(runs, tmp_path, "again")
    assert signal.getsignal(number) is handler


def test_nohup(settings, tmp_path, monkeypatch):
    """SIGHUP stays ignored, between runs and in them."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_at(monkeypatch, signal.SIGHUP, step=9)
        assert sweep(runs_of(settings, "addition", "memorization"), tmp_path, "again")
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_data_that_has_moved(settings, tmp_path, trained, monkeypatch):
    """The planned run names its new place, and the run that was stopped the old one."""
    (tmp_path / "here").mkdir()
    text = write_text(tmp_path / "text")
    runs = runs_of(settings, "wikipedia", data=str(text))
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGTERM, step=3)
        with pytest.raises(training.TrainingInterrupted):
            sweep(runs, tmp_path / "out", "again")
    moved = text.rename(tmp_path / "here" / "text")
    planned = runs_of(settings, "wikipedia", data=str(moved))
    assert sweep(planned, tmp_path / "out", "again")
    assert read_result(tmp_path / "out" / planned[0].name).config.data == str(moved)
    training.fit(planned[0].config, tmp_path / "alone")
    assert outcome(tmp_path / "out" / planned[0].name) == outcome(tmp_path / "alone")


def test_diverged_runs_are_passed(settings, tmp_path, trained, monkeypatch, capsys):
    runs = runs_of(settings, "addition", "memorization")
    train_step = Trainer.train_step

    def diverge(trainer):
        report = train_step(trainer)
        if trainer.config.task == "addition" and trainer.step == 4:
            raise NonFiniteError("no number", "loss", float("nan"), 4, 3)
        return report

    monkeypatch.setattr(Trainer, "train_step", diverge)
    assert sweep(runs, tmp_path, "again")
    assert [read_result(tmp_path / run.name).state for run in runs] == ["diverged", "ended"]
    lost = read_result(tmp_path / runs[0].name)
    assert (lost.samples, lost.test) == (8, None)
    name = runs[0].name.ljust(len(runs[1].name))
    assert f"1 of 2  {name}  diverged, accuracy" in capsys.readouterr().out
    assert sweep(runs, tmp_path, "again")
    assert trained == [run.name for run in runs]


def test_another_processs_runs_are_left_to_it(settings, tmp_path, trained):
    runs = runs_of(settings, "addition", "memorization", "mnist")
    claims = tmp_path / CLAIMS
    claims.mkdir()
    with FileLock(claims / runs[0].name):
        assert not sweep(runs, tmp_path, "again")
    assert trained == [run.name for run in runs[1:]]
    assert sweep(runs, tmp_path, "again")
    assert trained[2:] == [runs[0].name]


def test_a_run_that_is_trained_by_hand_is_left(settings, tmp_path, trained):
    """``mlx-tlstm train --resume`` knows no claims, only the run's own lock."""
    first, second = runs_of(settings, "addition", "memorization")
    folder = RunFolder.create(tmp_path / first.name, first.config)
    with folder.lock():
        assert not sweep([first, second], tmp_path, "again")
    assert trained == [second.name]


def test_processes_share_a_sweep(settings, tmp_path):
    runs = [PlannedRun.of(settings("memorization", seed=seed)) for seed in range(6)]
    processes = [start(runs, tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    codes = [process.returncode for process in processes]
    assert set(codes) <= {0, 3}, outputs
    assert 0 in codes, outputs
    for run in runs:
        records = RunFolder.open(tmp_path / "out" / run.name).read_metrics()
        assert [record["samples"] for record in records] == [8, 16, 24]
        assert read_result(tmp_path / "out" / run.name).state == "ended"


def test_a_killed_processs_run_is_taken_over(settings, tmp_path, trained):
    often = {"checkpoint_every": 2, "checkpoint_seconds": 0}
    runs = runs_of(settings, "addition", "memorization", **often)
    process = start(runs, tmp_path, kill_at=4)  # of six steps a run
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    out = tmp_path / "out"
    assert read_result(out / runs[0].name).samples == 8
    assert sweep(runs, out, "again")
    assert trained == [run.name for run in runs]
    for run in runs:
        training.fit(run.config, tmp_path / "alone" / run.name)
        assert outcome(out / run.name) == outcome(tmp_path / "alone" / run.name)


def test_other_runs_under_the_names(settings, tmp_path, trained):
    first, second = runs_of(settings, "addition", "wikipedia")
    assert sweep([first, second], tmp_path, "again")
    moved = first.config.replace(checkpoint_every=3, keep_checkpoints=1)
    check_runs([dataclasses.replace(first, config=moved)], tmp_path)
    moved = second.config.replace(data="/elsewhere/text")
    check_runs([dataclasses.replace(second, config=moved)], tmp_path)
    other = dataclasses.replace(first, config=first.config.replace(samples=48, hidden_size=9))
    message = r"addition.*' was trained with hidden_size 8 in place of 9, samples 24 in place of 48"
    with pytest.raises(ValueError, match=message):
        sweep([second, other], tmp_path, "again")
    with pytest.raises(ValueError, match="data text in place of novel"):
        check_runs(
            [dataclasses.replace(second, config=second.config.replace(data="novel"))], tmp_path
        )
    with pytest.raises(ValueError, match="'runs' must be of one configuration a name"):
        check_runs([first, other], tmp_path)
    assert len(trained) == 2


def test_results_of_a_run(tmp_path):
    values = (0.5, 0.99, 0.995, 0.98, 1.0, 0.97)
    config = TASKS["memorization"].quick()
    write_run(tmp_path / "a", config, values, {"accuracy": 0.75, "loss": 1.0}, split="test")
    result = read_result(tmp_path / "a")
    assert (result.to_99, result.to_100) == (3000, 5000)
    assert (result.best, result.test, result.split) == (1.0, 0.75, "test")
    assert (result.samples, result.seconds, result.state) == (6000, 360.0, "ended")
    assert (result.machines, result.note) == ((), "")
    write_run(tmp_path / "b", config, values[:2], split="test")
    result = read_result(tmp_path / "b")
    assert (result.to_99, result.to_100, result.best, result.test) == (None, None, 0.99, None)
    assert (result.state, result.settled) == ("unfinished", False)
    for name, kinds in (("c", ("rollback", "stop")), ("d", ("stop", "rollback"))):
        run = write_run(tmp_path / name, config, [])
        for kind in kinds:
            run.append_event({"event": kind})
    result = read_result(tmp_path / "c")
    assert (result.state, result.settled) == ("diverged", True)
    assert (result.best, result.samples) == (None, 0)
    assert read_result(tmp_path / "d").state == "unfinished"
    assert read_result(tmp_path / "nothing") is None


def test_damaged_results(tmp_path):
    kept = tmp_path / "run"
    training.fit(TASKS["addition"].quick().replace(**TINY, length=2, variant="2d-tlstm"), kept)
    record_origin(kept, {"cpu": "x"}, "")
    assert read_result(kept).state == "ended"
    for name, content in (("test.json", "{}"), ("test.json", "{"), ("origin.json", "[]")):
        before = (kept / name).read_text()
        (kept / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            read_result(kept)
        (kept / name).write_text(before)
    (kept / "events.jsonl").write_text('{"event": "stop"}\n{"event": "ro')
    (kept / "test.json").unlink()
    assert read_result(kept).state == "diverged"
    (kept / "events.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"events\.jsonl, line 1: event' must be a word"):
        read_result(kept)


def test_fewer_bits_are_better(tmp_path):
    config = TASKS["wikipedia"].quick().replace(data="/some/where/text")
    write_run(tmp_path / "a", config, (3.0, 2.0, 2.5), {"bpc": 2.25}, split="test")
    result = read_result(tmp_path / "a")
    assert (result.best, result.test, result.to_99, result.to_100) == (2.0, 2.25, None, None)
    assert result.as_json()["config"]["data"] == "text"
    json.dumps(result.as_json())


@pytest.mark.parametrize(
    ("table", "rows", "first", "ours"),
    [
        ("table-1", 8, {"wikipedia": ("1.44", "≈17M")}, {"wikipedia": {6: ("1.264", "50.1M")}}),
        (
            "table-2",
            4,
            {"addition": ("51%", "5M"), "memorization": (">50%", "900K")},
            {
                "addition": {7: (">99%", "298K"), 10: (">99%", "317K")},
                "memorization": {7: (">99%", "115K"), 10: (">99%", "54K")},
            },
        ),
        (
            "table-3",
            10,
            {"mnist": ("97.0",), "pmnist": ("82.0",)},
            {"mnist": {3: ("99.2",), 5: ("99.0",)}, "pmnist": {3: ("94.9",), 5: ("95.7",)}},
        ),
    ],
)
def test_tables_as_printed(table, rows, first, ours):
    printed = TABLES[table]
    assert len(printed.rows) == rows
    assert printed.rows[0].cells == first
    by_task = {task: {} for task in ours}
    for row, task, cells in printed.cells():
        assert len(cells) == len(printed.quantities)
        if row.depth is not None:
            by_task[task][row.depth] = cells
    assert by_task == ours

"""What follows a loss that is not finite: a stop, or a rollback with a lower learning rate."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
import signal
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from kill_and_resume import outcome
from tiny_tasks import Stop, StopAt

from mlx_tlstm import training
from mlx_tlstm.training.disk import MAX_ROLLBACKS, ROLLBACK_FACTOR
from mlx_tlstm.training.runs import RunFolder

OFTEN = {"samples": 48, "checkpoint_every": 2, "checkpoint_seconds": 0}
#: Largest learning rates, by step, at which :func:`unstable` training does not diverge.
STABLE = {5: 3e-4, 9: 2e-4}


@pytest.fixture
def unstable(monkeypatch):
    """Losses that are no number at some steps unless the learning rate is low."""
    require_finite = training.Trainer.require_finite

    def act(trainer, name, value, batch=None):
        unstable = batch is not None and trainer.learning_rate > STABLE.get(trainer.step, 1.0)
        require_finite(trainer, name, math.nan if unstable else value, batch)

    monkeypatch.setattr(training.Trainer, "require_finite", act)


class Spy(StopAt):
    """Spoils a weight after a number of steps, and stops after another."""

    def __init__(self, spoil_at=None, stop_at=None):
        super().__init__(steps=stop_at)
        self._spoil_at = spoil_at

    def on_start(self, trainer):
        self.trainer = trainer

    def on_step(self, trainer, report):
        super().on_step(trainer, report)
        if len(self.steps) == self._spoil_at:
            bias = mx.full(trainer.weights["readout"]["bias"].shape, mx.nan)
            trainer.weights["readout"]["bias"] = bias
            trainer.model.readout.bias = bias


def test_stop_is_recorded(settings, tmp_path):
    with pytest.raises(training.NonFiniteError, match="the loss is nan at step 6 ") as caught:
        training.fit(settings("addition", **OFTEN), tmp_path / "run", [Spy(spoil_at=5)])
    assert (caught.value.step, caught.value.batch, caught.value.quantity) == (6, 5, "loss")
    assert RunFolder.open(tmp_path / "run").read_events() == [
        {"event": "stop", "step": 6, "batch": 5, "quantity": "loss", "value": "nan"}
    ]


def test_rollback(settings, tmp_path):
    config = settings("addition", on_divergence="rollback", **OFTEN)
    spy, run = Spy(spoil_at=5), tmp_path / "run"
    result = training.fit(config, run, [spy])
    assert spy.steps == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12]
    assert spy.trainer.learning_rate == pytest.approx(config.learning_rate * ROLLBACK_FACTOR)
    (event,) = RunFolder.open(run).read_events()
    assert event == {
        "event": "rollback",
        "step": 6,
        "batch": 5,
        "quantity": "loss",
        "value": "nan",
        "restored_step": 4,
        "learning_rate": pytest.approx(5e-4),
    }
    assert spy.notes == ["The loss is nan at step 6; back to step 4 with learning rate 0.0005"]
    assert [record["step"] for record in RunFolder.open(run).read_metrics()] == [2, 4, 6, 8, 10, 12]

    # The same by hand: four steps, then the other learning rate.
    trainer = training.Trainer(config)
    for step in range(12):
        if step == 4:
            trainer.optimizer.learning_rate = trainer.learning_rate * ROLLBACK_FACTOR
        trainer.train_step()
    last = mx.load(str(run / "last" / "model.safetensors"))
    np.testing.assert_array_equal(np.array(trainer.model.readout.weight), last["readout.weight"])
    assert result.last["step"] == 12


def test_rollback_of_records_and_weights(settings, tmp_path):
    """Going back past an evaluation takes its record and its best weights back."""
    config = settings("addition", on_divergence="rollback", **{**OFTEN, "checkpoint_every": 5})
    run = tmp_path / "run"
    rows = []

    class Look(Spy):
        def on_note(self, text):
            rows.extend(record["step"] for record in RunFolder.open(run).read_metrics())

    training.fit(config, run, [Look(spoil_at=8)])
    assert rows == [2, 4]
    assert [record["step"] for record in RunFolder.open(run).read_metrics()] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("spoil_at", [8, 9])
def test_progress_after_a_rollback(spoil_at, settings, tmp_path, capsys, monkeypatch):
    """Past one evaluation that is repeated, and past two; each step takes 2 s for 4 samples."""
    config = settings("addition", on_divergence="rollback", **{**OFTEN, "checkpoint_every": 5})
    spy = Spy(spoil_at=spoil_at)
    clock = SimpleNamespace(perf_counter=lambda: 2.0 * len(spy.steps))
    monkeypatch.setattr("mlx_tlstm.training.progress.time", clock)
    training.fit(config, tmp_path / "run", [spy, training.Progress(bar=False)])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == {8: 7, 9: 8}[spoil_at]
    for line in lines:
        left = (48 - int(line.split()[0])) // 2
        assert line.endswith(f"  2 samples/s  00:{left:02} left"), line


def test_progress_bar_after_a_rollback(settings, tmp_path, capsys):
    """It goes back, and ends full."""
    config = settings("addition", on_divergence="rollback", **OFTEN)
    training.fit(config, tmp_path / "run", [Spy(spoil_at=5), training.Progress(bar=True)])
    assert re.search(r"100%.* 48/48 \[.*\]\s*$", capsys.readouterr().err)


def test_rollback_until_it_holds(unstable, settings, tmp_path):
    """Twice at the first bad step, and once more at the second."""
    spy = Spy()
    training.fit(settings("addition", on_divergence="rollback", **OFTEN), tmp_path / "run", [spy])
    events = RunFolder.open(tmp_path / "run").read_events()
    assert [event["step"] for event in events] == [5, 5, 9]
    assert [event["restored_step"] for event in events] == [2, 2, 6]
    rates = [event["learning_rate"] for event in events]
    assert rates == pytest.approx([5e-4, 2.5e-4, 1.25e-4])
    assert spy.steps == [1, 2, 3, 4, 3, 4, 3, *range(4, 9), *range(7, 13)]


def test_nothing_to_go_back_to(settings, tmp_path):
    """The first batch diverges: no learning rate has had a part in it."""
    trainer, run = training.prepare(
        settings("addition", on_divergence="rollback", **OFTEN), tmp_path / "run"
    )
    weight = trainer.weights["readout"]["weight"]
    trainer.weights["readout"]["weight"] = mx.full(weight.shape, 3e38)
    trainer.model.update(trainer.weights)
    advice = r"at step 1 .*; try another seed or another forget_bias \(now 1\.0\)"
    with pytest.raises(training.NonFiniteError, match=advice):
        training.train(trainer, run)
    (event,) = run.read_events()
    assert (event["event"], event["step"], event["batch"]) == ("stop", 1, 0)


def test_a_checkpoint_right_before_the_divergence_is_passed_over(settings, tmp_path):
    """Its weights are finite, but their next loss is not, whatever the learning rate."""

    class Enlarge(Spy):
        def on_step(self, trainer, report):
            super().on_step(trainer, report)
            if len(self.steps) == 4:
                weight = mx.full(trainer.weights["readout"]["weight"].shape, 3e38)
                trainer.weights["readout"]["weight"] = weight
                trainer.model.readout.weight = weight

    config = settings("addition", on_divergence="rollback", **{**OFTEN, "eval_every": 1000})
    spy, run = Enlarge(), tmp_path / "run"
    training.fit(config, run, [spy])
    assert spy.steps == [1, 2, 3, 4, *range(3, 13)]
    (event,) = RunFolder.open(run).read_events()
    assert (event["step"], event["restored_step"]) == (5, 2)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert [int(name[-9:]) for name in names] == [8, 10, 12]


def test_no_checkpoint_has_the_divergence(settings, tmp_path):
    config = settings(
        "addition",
        on_divergence="rollback",
        keep_checkpoints=99,
        **{**OFTEN, "checkpoint_every": 1},
    )
    training.fit(config, tmp_path / "run", [Spy(spoil_at=5)])
    files = list((tmp_path / "run" / "checkpoints").glob("*/weights.safetensors"))
    assert len(files) == 1 + 4 + 1 + 8
    for path in files:
        for array in mx.load(str(path)).values():
            assert mx.isfinite(array).all()


def test_resume_of_a_run_with_rollbacks(unstable, settings, tmp_path):
    """Before them, between two to the same checkpoint, between two checkpoints, and after them."""
    config = settings("addition", on_divergence="rollback", **OFTEN)
    training.fit(config, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    assert len(expected["events.jsonl"]) == 3
    for stop_at in (3, 5, 10, 18):
        run = tmp_path / f"run{stop_at}"
        with pytest.raises(Stop):
            training.fit(config, run, [Spy(stop_at=stop_at)])
        training.resume(run)
        assert outcome(run) == expected


def test_rollback_counts_outlast_a_stop(settings, tmp_path):
    """A run that may roll back five times may not ten times because it was stopped."""
    config = settings("addition", on_divergence="rollback", learning_rate=1e38, **OFTEN)
    run = tmp_path / "run"
    with pytest.raises(training.NonFiniteError):
        training.fit(config, run)
    with pytest.raises(training.NonFiniteError):
        training.resume(run)
    lines = (run / "events.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["event"] for line in lines]
    assert kinds == ["rollback"] * MAX_ROLLBACKS + ["stop"]


def test_an_edited_learning_rate(unstable, settings, tmp_path):
    """It counts at once, as it stands; what a callback set lasts without an edit."""
    config = settings("addition", on_divergence="rollback", **OFTEN)
    for edited, lasting in ((4e-4, 4e-4), (None, 5e-4), (None, 1e-5)):
        run, spy = tmp_path / str(lasting), Spy(stop_at=6)
        with pytest.raises(Stop):
            training.fit(config, run, [spy])
        if edited:
            RunFolder(run, config.replace(learning_rate=edited)).save_config()
        elif lasting == 1e-5:
            trainer, folder = training.reopen(run)
            session = training.disk.RunOnDisk(trainer, folder, print)
            trainer.optimizer.learning_rate = lasting
            session.step()
            session.save()
        trainer, folder = training.reopen(run)
        training.disk.RunOnDisk(trainer, folder, print)
        assert trainer.learning_rate == np.float32(lasting)


@pytest.mark.parametrize(
    "error",
    [
        training.NonFiniteError("[Trainer] the loss is nan", "loss", math.nan, 3, 2),
        training.TrainingInterrupted("Stopped after 3 samples", signal.SIGTERM),
    ],
)
@pytest.mark.parametrize("again", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
def test_errors_reach_another_process(error, again):
    """A pool of processes waits for ever for one that cannot be unpickled."""
    same = again(error)
    assert type(same) is type(error)
    assert str(same) == str(error) == error.args[0]
    assert repr(vars(same)) == repr(vars(error))

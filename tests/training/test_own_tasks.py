"""What a task of the user's own, or a callback, may get wrong: an error before any work."""

from __future__ import annotations

import dataclasses
import os
import re

import numpy as np
import pytest

from mlx_tlstm import tasks, training
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks import Memorization
from mlx_tlstm.tasks.base import Batch


def changed(inputs=None, targets=None):
    """A change of the batches of memorization, each array by a function of it."""

    def change(batch: Batch) -> Batch:
        return batch._replace(
            inputs=inputs(batch.inputs) if inputs else batch.inputs,
            targets=targets(batch.targets) if targets else batch.targets,
        )

    return change


def ignored(targets):
    targets = targets.copy()
    targets[:, :3] = -100  # as losses of other libraries take it
    return targets


def one_too_high(inputs):
    inputs = inputs.copy()
    inputs[0, 0] = 65
    return inputs


WRONG = {
    "targets to ignore": (changed(targets=ignored), "'targets' must be from 0 to 64 each but"),
    "a class too many": (changed(targets=one_too_high), "'targets' must be from 0 to 64 each but"),
    "a symbol too many": (changed(inputs=one_too_high), "'inputs' must be from 0 to 64 each but"),
    "one-hot targets": (
        changed(targets=lambda a: np.eye(65)[a]),
        "'targets' must be integers of shape (4, 6), as the inputs, but",
    ),
    "real targets": (
        changed(targets=lambda a: a.astype(np.float32)),
        "'targets' must be integers of shape (4, 6), as the inputs, but",
    ),
    "a target a sequence": (
        changed(targets=lambda a: a[:, 0]),
        "'targets' must be integers of shape (4, 6), as the inputs, but",
    ),
    "real symbols": (
        changed(inputs=lambda a: a.astype(np.float32)),
        "'inputs' must be integers [B, T], or values [B, T, 65], but",
    ),
    "lists": (changed(inputs=np.ndarray.tolist), "'inputs' must be a NumPy array but"),
    "rows too few": (
        changed(inputs=lambda a: a[:3], targets=lambda a: a[:3]),
        "'targets' must be of shape (4, 6) (batch_size, steps) in training, but",
    ),
    "steps too many": (
        changed(*[lambda a: np.concatenate([a, a], axis=1)] * 2),
        "'targets' must be of shape (4, 6) (batch_size, steps) in training, but",
    ),
    "another batch each time": (
        changed(inputs=lambda a: np.random.default_rng().integers(0, 60, a.shape)),
        "'train_batch' must be a pure function of the step",
    ),
}


@pytest.fixture
def task_of(settings, monkeypatch):
    """A function that registers a task with other batches, and gives its tiny settings."""

    def register(change=lambda batch: batch, test=lambda batches: batches, after=0):
        class Own(Memorization):
            name = "own"

            def train_batch(self, step):
                batch = super().train_batch(step)
                return change(batch) if step >= after else batch

            def eval_batches(self, split):
                yield from test(list(super().eval_batches(split)))

        monkeypatch.setitem(tasks.TASKS, "own", Own)
        return settings("memorization", length=2, batch_size=4).replace(task="own")

    return register


@pytest.mark.parametrize("name", WRONG)
def test_batches_of_training(name, task_of, tmp_path):
    change, message = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(f"[Own] {message}")):
        training.fit(task_of(change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_later_batch(task_of, tmp_path):
    config = task_of(WRONG["targets to ignore"][0], after=2).replace(samples=20)
    with pytest.raises(ValueError, match=r"'targets' must be from 0 to 64 each but got -100"):
        training.fit(config, tmp_path / "run")
    training.fit(task_of().replace(samples=20), tmp_path / "right")


def test_batches_of_an_evaluation(task_of, tmp_path):
    config = task_of(test=lambda batches: [changed(targets=one_too_high)(b) for b in batches])
    task, wrong = tasks.make_task(config), r"'targets' must be from 0 to 64 each but got 65"
    with pytest.raises(ValueError, match=wrong):
        training.evaluate(training.build_model(config, task), task, "test")
    with pytest.raises(ValueError, match=wrong):
        training.fit(config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"'validation' must be a split of one batch or more"):
        training.fit(task_of(test=lambda batches: []), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "callbacks", [training.Progress(), None, [print], [training.Progress], "progress"]
)
def test_callbacks_that_are_none(callbacks, settings, tmp_path):
    with pytest.raises(ValueError, match="'callbacks' must be a list of callbacks"):
        training.fit(settings("addition"), tmp_path / "run", callbacks)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config", [{"task": "addition"}, "addition", None])
def test_a_configuration_that_is_none(config, tmp_path):
    with pytest.raises(ValueError, match="'config' must be a TrainingConfig but got"):
        training.fit(config, tmp_path / "run")


def test_settings_of_a_subclass_are_refused(settings):
    @dataclasses.dataclass(frozen=True)
    class Wider(TrainingConfig):
        vocabulary: int = 64

    with pytest.raises(ValueError, match=r"'fields' must be TrainingConfig's own.*'vocabulary'"):
        Wider(**dataclasses.asdict(settings("addition")))


def test_a_callback_may_leave_the_folder(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    class Leaving(training.Callback):
        def on_start(self, trainer):
            os.chdir("elsewhere")

    result = training.fit(settings("addition"), "run", [Leaving()])
    assert result.folder == tmp_path / "run"
    assert (result.folder / "test.json").exists()
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_callback_may_change_its_record(settings, tmp_path):
    class Taking(training.Callback):
        def on_evaluation(self, record):
            record.clear()

    result = training.fit(settings("addition"), tmp_path / "run", [Taking()])
    assert "accuracy" in result.best

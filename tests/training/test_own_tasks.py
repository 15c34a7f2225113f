"""What a task of the user's own, or a callback, may get wrong: an error before any work."""

from __future__ import annotations

import dataclasses
import os
import re

import numpy as np
import pytest

import mlx_tlstm
from mlx_tlstm import SequenceModel, make_layer, tasks, training

# isort: split
import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.rivals.lstm import LSTMCell
from mlx_tlstm.tasks import Memorization
from mlx_tlstm.tasks.base import Batch
from mlx_tlstm.training.runs import RunFolder


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


@pytest.mark.parametrize(
    "kept",
    [
        lambda array: np.ascontiguousarray(array[:, ::-1])[:, ::-1],
        lambda array: np.flip(np.flip(array).copy()),
        lambda array: array.astype(array.dtype.newbyteorder()),
        np.asfortranarray,
    ],
)
def test_arrays_that_lie_in_memory_in_another_way(kept, task_of, tmp_path):
    """MLX takes no array that is flipped, or of bytes in the other order."""
    config = task_of().replace(samples=20)
    expected = training.fit(config, tmp_path / "expected").test
    config = task_of(changed(kept, kept), lambda batches: map(changed(kept, kept), batches))
    assert training.fit(config.replace(samples=20), tmp_path / "run").test == expected


def test_values_that_lie_in_memory_in_another_way(settings):
    task = training.Trainer(settings("mnist")).task
    batch = task.train_batch(0)
    for kept in (lambda a: a.astype(">f4"), lambda a: np.flip(np.flip(a).copy()), np.longdouble):
        checked = task.checked(batch._replace(inputs=kept(batch.inputs)))
        assert mx.array_equal(mx.array(checked.inputs), mx.array(batch.inputs))


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


def nan_values(batch: Batch) -> Batch:
    values = np.zeros((*batch.inputs.shape, 65), np.float32)
    values[0, 1, 2] = np.nan
    return batch._replace(inputs=values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan_values, "'inputs' must be finite numbers but"),
        (lambda batch: tuple(batch), "'batch' must be a Batch of mlx_tlstm.tasks but"),
    ],
)
def test_batches_that_are_none(change, message, task_of, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"[Own] {message}")):
        training.fit(task_of(change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluations_that_differ(task_of, tmp_path):
    rng = np.random.default_rng()

    def drawn(batches):
        return [b._replace(inputs=rng.integers(0, 60, b.inputs.shape)) for b in batches]

    message = r"\[Own\] 'eval_batches\('validation'\)' must be the same batches at each call"
    with pytest.raises(ValueError, match=message):
        training.fit(task_of(test=drawn), tmp_path / "run")
    once = iter(list(tasks.make_task(task_of()).eval_batches("validation")))
    config = task_of()
    tasks.TASKS["own"].eval_batches = lambda self, split: once
    with pytest.raises(ValueError, match=message):
        training.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("metric", "mse", "'metric' must be one of 'accuracy', 'bpc' but got 'mse'"),
        ("monitor", "train", "'monitor' must be one of 'validation', 'test' but got 'train'"),
        ("loss_positions", [1, 2], "'loss_positions' must be a slice of the steps but got [1, 2]"),
        ("answer_positions", 3, "'answer_positions' must be a slice of the steps but got 3"),
        ("input_size", None, "'input_size' must be an integer of 1 or more but got None"),
        ("output_size", 0, "'output_size' must be an integer of 1 or more but got 0"),
        ("solved_at", "all", "'solved_at' must be a number or None but got 'all'"),
        ("input_fan_in", "one", "'input_fan_in' must be a positive number or None but got 'one'"),
    ],
)
def test_attributes_of_a_task(name, value, message, task_of, tmp_path):
    config = task_of()

    def initialise(self, config):
        Memorization.__init__(self, config)
        setattr(self, name, value)

    tasks.TASKS["own"].__init__ = initialise
    with pytest.raises(ValueError, match=re.escape(f"[Own] {message}")):
        training.fit(config, tmp_path / "run")
    tasks.TASKS["own"].__init__ = lambda self, config: None  # super().__init__ is forgotten
    with pytest.raises(ValueError, match=r"\[Own\] 'steps' must be an integer of 1 or more"):
        training.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("classes", [10, 64])
def test_a_model_of_another_task(classes, settings):
    """MLX would read beyond its logits."""
    task = tasks.make_task(settings("memorization"))
    model = SequenceModel(make_layer("2d-tlstm", 65, 8, depth=2), classes)
    message = rf"'model' must be one of 65 classes, as the task has, or more but got {classes}"
    with pytest.raises(ValueError, match=message):
        training.evaluate(model, task, "test")
    model = SequenceModel(make_layer("2d-tlstm", 60, 8, depth=2), 65)
    with pytest.raises(ValueError, match="with input size 60"):
        training.evaluate(model, task, "test")


def test_read_outs_that_the_task_fits(settings):
    """More classes than needed; and what a read-out would do in training mode is not done."""
    task = tasks.make_task(settings("memorization"))
    model = SequenceModel(make_layer("2d-tlstm", 65, 8, depth=2), 68)
    expected = training.evaluate(model, task, "test")
    model.readout = nn.Sequential(nn.BatchNorm(8, affine=False), nn.Dropout(0.5), model.readout)
    key = mx.random.state[0].tolist()
    found = training.evaluate(model, task, "test")
    assert found["loss"] == pytest.approx(expected["loss"], abs=0.01)
    assert mx.random.state[0].tolist() == key
    assert model.training


def test_a_task_that_is_told_another_thing_than_a_path(task_of, tmp_path):
    config = task_of().replace(samples=8, data="tiny_shakespeare")

    def initialise(self, config):
        Memorization.__init__(self, config.replace(data=None))

    tasks.TASKS["own"].__init__ = initialise
    training.fit(config, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").config.data == "tiny_shakespeare"


def test_the_usual_number_of_inputs_may_be_left_out(task_of, monkeypatch):
    config = task_of()
    layers = []
    for fan_in in (None, 65):
        task = tasks.make_task(config)
        task.input_fan_in = fan_in
        layers.append(training.build_model(config, task).layer)
    weights = [layer.cell.input_projection.weight for layer in layers]
    assert mx.array_equal(*weights)


def test_a_text_of_other_symbols(settings, tmp_path):
    text = tmp_path / "text.txt"
    config = settings("wikipedia").replace(data=str(text))
    text.write_bytes(b"abcd" * 4000)
    model = training.build_model(config, tasks.make_task(config))
    text.write_bytes(b"wxyz" * 4000)
    with pytest.raises(ValueError, match="'task' must be of the symbols that the model knows"):
        training.evaluate(model, tasks.make_task(config), "test")


@pytest.mark.parametrize("symbol", [-1, 65])
def test_symbols_that_are_none(symbol):
    assert training.encode([[0, 64]], 65, mx.float32).sum().item() == 2
    with pytest.raises(ValueError, match=rf"\[encode\] 'inputs' must be from 0 to 64 .* {symbol}"):
        training.encode(np.array([[0, symbol]]), 65, mx.float32)


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


def test_a_run_that_is_moved_away_is_not_begun_anew(settings, tmp_path):
    class Moving(training.Callback):
        def on_step(self, trainer, report):
            if trainer.step == 1:
                (tmp_path / "run").rename(tmp_path / "moved")

    config = settings("addition").replace(checkpoint_every=1)
    with pytest.raises(FileNotFoundError, match="/run/"):
        training.fit(config, tmp_path / "run", [Moving()])
    assert {path.name for path in tmp_path.iterdir()} == {"moved"}


def test_data_is_found_from_another_folder(settings, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_bytes(b"some text of some bytes " * 2000)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    training.fit(settings("wikipedia").replace(data="text.txt"), "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert training.task_of(mlx_tlstm.load("../run")).symbols


#: Steps of the tiny addition; the second is evaluated, and the last.
LAST = 6


class _Changing(training.Callback):
    def __init__(self, change, step):
        self.change, self.step = change, step

    def on_start(self, trainer):
        if self.step == 0:
            self.change(trainer.model)

    def on_step(self, trainer, report):
        if trainer.step == self.step:
            self.change(trainer.model)


def _halve(model):
    model.readout.bias = model.readout.bias / 2 + 1


def _halve_in_place(model):
    model.readout.bias[:] = model.readout.bias / 2 + 1


def _replace(model):
    model.readout = nn.Sequential(model.readout)


@pytest.mark.parametrize(
    ("change", "step", "named"),
    [
        (_halve, 0, r"\['readout.bias'\]"),
        (_halve, 1, r"\['readout.bias'\]"),
        *((_halve_in_place, step, r"\['readout.bias'\]") for step in (0, 1, 2, LAST)),
        (_halve, LAST, r"\['readout.bias'\]"),
        (lambda model: model.set_dtype(mx.float16), 1, "layer.cell.bias"),
        (lambda model: model.layer.freeze(), 0, "layer.cell.bias"),
        (lambda model: model.layer.freeze(), 1, "layer.cell.bias"),
        (_replace, 0, "readout.layers.0.bias"),
        (_replace, 1, "readout.layers.0.bias"),
    ],
)
def test_callbacks_that_change_the_weights(change, step, named, settings, tmp_path):
    """Training has its own, with which it would go on without a word."""
    config = settings("addition")
    config = config.replace(samples=LAST * config.batch_size, eval_every=2 * config.batch_size)
    with pytest.raises(ValueError, match=rf"\[Trainer\] 'model' must be left to training.*{named}"):
        training.fit(config, tmp_path / "run", [_Changing(change, step)])
    assert all(record["evaluation_loss"] < 10 for record in records(tmp_path / "run"))


def records(run):
    return RunFolder.open(run).read_metrics()


def test_frozen_weights_are_left_alone_too(task_of, tmp_path, monkeypatch):
    def frozen(input_size, hidden_size):
        cell = LSTMCell(input_size, hidden_size)
        cell.freeze(keys=["bias"])
        return cell

    monkeypatch.setitem(mlx_tlstm.VARIANTS, "frozen", mlx_tlstm.CellVariant(frozen))

    def change(model):
        model.layer.cell.bias = model.layer.cell.bias + 1

    config = task_of().for_variant("frozen").replace(samples=20)
    training.fit(config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"'layer.cell.bias \(frozen\)'"):
        training.fit(config, tmp_path / "changed", [_Changing(change, 1)])


def test_callbacks_may_use_the_model(settings, tmp_path):
    class Using(training.Callback):
        def on_step(self, trainer, report):
            trainer.model.eval()
            trainer.model(mx.zeros((1, 3, trainer.task.input_size)))
            parameters = trainer.model.parameters()
            trainer.model.update(tree_map(lambda array: array + 1, parameters))
            trainer.model.update(tree_map(mx.array, parameters))

    plain = training.fit(settings("addition"), tmp_path / "plain")
    used = training.fit(settings("addition"), tmp_path / "used", [Using()])
    assert used.last["loss"] == plain.last["loss"]


def test_a_callback_may_change_its_record(settings, tmp_path):
    class Taking(training.Callback):
        def on_evaluation(self, record):
            record.clear()

    result = training.fit(settings("addition"), tmp_path / "run", [Taking()])
    assert "accuracy" in result.best

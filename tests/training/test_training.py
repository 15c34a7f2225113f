"""The training loop, evaluation and the run folder, on tasks that take seconds."""

from __future__ import annotations

import json
import math
import re
import signal
import threading
import time

import mlx.core as mx
import numpy as np
import pytest
from comparison import relative_error
from mlx import nn
from mlx.utils import tree_flatten
from tiny_tasks import load_run

from mlx_tlstm import SequenceModel, load, make_layer, training
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.tasks import TASKS, Memorization, make_task
from mlx_tlstm.tasks.addition import addition_rows
from mlx_tlstm.tasks.memorization import memorization_rows
from mlx_tlstm.training import build_model
from mlx_tlstm.training.runs import RunFolder

FILE = "model.safetensors"


class Spy(training.Callback):
    """Records what it was told, and acts after the evaluations or steps it is given for."""

    def __init__(self, on_step=None, on_evaluation=None):
        self.trainer, self.reports, self.records, self.ended = None, [], [], 0
        self._actions = {"step": on_step or {}, "evaluation": on_evaluation or {}}

    def on_start(self, trainer):
        self.trainer = trainer

    def on_step(self, trainer, report):
        self.reports.append(report)
        self._act("step", len(self.reports))

    def on_evaluation(self, record):
        self.records.append(record)
        self._act("evaluation", len(self.records))

    def on_end(self):
        self.ended += 1

    def _act(self, kind, number):
        action = self._actions[kind].get(number)
        if action:
            action(self.trainer)


def test_each_callback_has_its_end(settings, tmp_path):
    """Those before and after one that fails at its own, in their order."""
    ended = []

    class Ending(training.Callback):
        def __init__(self, name):
            self.name = name

        def on_end(self):
            ended.append(self.name)
            if self.name == "failing":
                raise ZeroDivisionError

    callbacks = [Ending(name) for name in ("first", "failing", "last")]
    with pytest.raises(ZeroDivisionError):
        training.fit(settings("addition"), tmp_path / "run", callbacks=callbacks)
    assert ended == ["first", "failing", "last"]


def interrupt(_):
    signal.raise_signal(signal.SIGINT)


def learning_rate(value):
    return lambda trainer: setattr(trainer.optimizer, "learning_rate", value)


def arrays(path):
    return {name: np.array(array) for name, array in mx.load(str(path)).items()}


def same(first, second):
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("axes", [1, 2])
def test_first_gradient_under_channel_normalization(axes):
    """No memory is zero in all channels, where the gradient would grow at every step."""
    config = TASKS["memorization"].paper()
    config = config.replace(variant=f"{axes + 1}d-tlstm+cn", hidden_size=20, batch_size=2)
    trainer = training.Trainer(config)
    assert trainer.train_step().gradient_norm < 100
    trainer = training.Trainer(config)
    trainer.weights["layer"]["cell"]["bias"][: config.hidden_size] = 0
    trainer.model.update(trainer.weights)
    assert trainer.train_step().gradient_norm > 1e8


def test_first_gradient_over_pixels(settings):
    """The first of an image's 784 pixels are black, that is zero inputs."""
    config = settings("mnist", length=784, depth=3, variant="2d-tlstm+cn", forget_bias=4.0)
    assert training.Trainer(config).train_step().gradient_norm < 100


@pytest.mark.parametrize("task", TASKS)
def test_run_folder(task, settings, tmp_path):
    config, spy = settings(task), Spy()
    result = training.fit(config, tmp_path / "a" / "run", [spy])
    folder = tmp_path / "a" / "run"
    assert result.folder == folder
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "metrics.jsonl", "test.json", "best", "last", "checkpoints", ".lock"),
    }
    assert TrainingConfig.load(folder / "config.json") == config
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert records == spy.records == RunFolder.open(folder).read_metrics()
    assert (spy.ended, len(spy.reports)) == (1, 6)
    assert [record["samples"] for record in records] == [8, 16, 24]
    assert [record["step"] for record in records] == [2, 4, 6]
    metric = TASKS[task].metric
    for number, record in enumerate(records):
        keys = {"samples", "step", "loss", "gradient_norm", "split", "evaluation_loss", metric}
        keys |= {"clip_rate", "seconds"} | (
            {"sequence_accuracy"} if TASKS[task].reports_sequences else set()
        )
        assert record.keys() == keys
        assert record["split"] == TASKS[task].monitor
        assert record["loss"] == np.mean([r.loss for r in spy.reports[2 * number :][:2]])
        norms = [r.gradient_norm for r in spy.reports[2 * number :][:2]]
        assert record["gradient_norm"] == np.mean(norms)
        assert record["clip_rate"] == np.mean([norm > 1 for norm in norms])
        assert [r.clipped for r in spy.reports] == [r.gradient_norm > 1 for r in spy.reports]
    assert 0 < records[0]["seconds"] <= records[1]["seconds"] <= result.seconds + 1e-3
    pick = min if metric == "bpc" else max
    assert result.best[metric] == pick(record[metric] for record in records)
    assert result.last == records[-1]

    run, loaded_task, model = load_run(folder)
    assert run.config == config
    metrics = training.evaluate(model, loaded_task, "test")
    assert metrics == training.evaluate(result.model, loaded_task, "test")
    assert not result.model.training
    stated = json.loads((folder / "test.json").read_text())
    assert stated == {"weights": "best", "samples": result.best["samples"], **metrics}
    assert stated == result.test
    if TASKS[task].monitor == "test":
        assert metrics.pop("loss") == result.best["evaluation_loss"]
        assert metrics == {name: result.best[name] for name in metrics}


def test_evaluations_between_whole_batches(settings, tmp_path):
    spy = Spy()
    config = settings("memorization", eval_every=10, samples=47)
    training.fit(config, tmp_path / "run", [spy])
    assert [record["samples"] for record in spy.records] == [12, 20, 32, 40, 44]


def test_learns_and_stops_when_solved(settings, tmp_path, monkeypatch):
    """Chance is 1/64; the seeds tried were over 60 % after 4,500 of these samples."""
    monkeypatch.setattr(Memorization, "solved_at", 0.5)
    config = settings(
        "memorization",
        length=1,
        hidden_size=24,
        batch_size=15,
        learning_rate=1e-2,
        samples=12_000,
        eval_every=600,
    )
    result = training.fit(config, tmp_path / "run")
    assert result.solved
    assert result.last == result.best
    assert 0.5 <= result.last["accuracy"] <= 1
    assert result.last["samples"] < 12_000
    assert result.last["loss"] < 2.0


def test_unsolved(settings, tmp_path):
    result = training.fit(settings("addition"), tmp_path / "run")
    assert not result.solved


def test_seeds(settings, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        training.fit(settings("addition", seed=seed), tmp_path / name)
    metrics = {}
    for name in "abc":
        metrics[name] = RunFolder.open(tmp_path / name).read_metrics()
        for record in metrics[name]:
            del record["seconds"]
    assert metrics["a"] == metrics["b"] != metrics["c"]
    for weights in ("best", "last"):
        contents = [(tmp_path / name / weights / FILE).read_bytes() for name in "abc"]
        assert contents[0] == contents[1] != contents[2]


def starting_weights(config):
    return dict(tree_flatten(build_model(config, make_task(config)).parameters()))


def test_a_seed_decides_the_starting_weights(settings):
    """All that are drawn, whatever the state of MLX's random numbers is."""
    weights, again, other = (starting_weights(settings("addition", seed=s)) for s in (1, 1, 2))
    assert same(weights, again)
    drawn = [name for name, array in weights.items() if mx.var(array).item() > 0]
    assert {"layer.cell.weight", "layer.cell.input_projection.weight", "readout.weight"} <= {*drawn}
    assert not any(mx.array_equal(weights[name], other[name]) for name in drawn)


@pytest.mark.parametrize(
    ("task", "fan_in"),
    [("memorization", 1), ("addition", 1), ("wikipedia", 1), ("mnist", 28), ("pmnist", 56)],
)
def test_starting_weights_of_the_inputs(task, fan_in, settings):
    """A symbol picks one of them."""
    weight = starting_weights(settings(task, hidden_size=100))["layer.cell.input_projection.weight"]
    assert mx.std(weight).item() == pytest.approx(fan_in**-0.5, rel=0.08)


def test_best_weights_are_kept(settings, tmp_path):
    """The step after the second evaluation spoils the weights."""
    config = settings("wikipedia", samples=160, eval_every=40)
    spy = Spy(on_evaluation={2: learning_rate(10.0)})
    result = training.fit(config, tmp_path / "run", [spy])
    bpc = [record["bpc"] for record in spy.records]
    assert min(bpc) == bpc[1]
    assert result.best["samples"] == 80
    for weights, expected in (("best", bpc[1]), ("last", bpc[-1])):
        _, task, model = load_run(tmp_path / "run", weights)
        assert training.evaluate(model, task, "validation")["bpc"] == expected


def _reference_loss(trainer, batch):
    logits, _ = trainer.model(training.encode(batch.inputs, trainer.task.input_size, mx.float32))
    log_probability = np.array(nn.log_softmax(logits), dtype=np.float64)
    rows, steps = np.indices(batch.targets.shape)
    nll = -log_probability[rows, steps, batch.targets]
    return nll[:, trainer.task.loss_positions], log_probability.argmax(axis=-1)


@pytest.mark.parametrize("task", ["memorization", "mnist", "wikipedia"])
def test_step_is_adam_on_the_clipped_mean_loss(task, settings):
    """Adam's first corrected step moves each weight against its gradient by the learning rate."""
    trainer = training.Trainer(settings(task, clip_norm=0.25))
    before = {name: np.array(w) for name, w in tree_flatten(trainer.weights)}
    nll, _ = _reference_loss(trainer, trainer.task.train_batch(0))
    report = trainer.train_step()
    assert report.loss == pytest.approx(nll.mean(), rel=1e-5)
    assert (trainer.step, trainer.samples) == (1, 4)
    moments = dict(tree_flatten(trainer.optimizer.state))
    squares, clipped = 0.0, report.gradient_norm > 0.25
    for name, weight in tree_flatten(trainer.weights):
        gradient = np.array(moments[f"{name}.m"], dtype=np.float64) / 0.1
        squares += (gradient**2).sum()
        np.testing.assert_allclose(
            np.array(moments[f"{name}.v"]), 0.001 * gradient**2, rtol=1e-3, atol=1e-12
        )
        expected = before[name] - 1e-3 * gradient / (np.abs(gradient) + 1e-8)
        np.testing.assert_allclose(np.array(weight), expected, rtol=0, atol=2e-6)
    norm = 0.25 if clipped else report.gradient_norm
    assert math.sqrt(squares) == pytest.approx(norm, rel=1e-4)


def test_step_clips_elements_before_the_norm(settings):
    """Limits below and above what occurs: each element is cut, then their norm, as reported."""
    free = training.Trainer(settings("memorization", clip_norm=0.0))
    whole, unclipped = free.train_step(), _first_gradients(free)
    largest = max(np.abs(gradient).max() for gradient in unclipped.values())
    assert not whole.clipped
    for limit, clip_norm in ((largest / 3, 0.0), (largest / 3, 1e-2), (2 * largest, 0.0)):
        trainer = training.Trainer(
            settings("memorization", clip_norm=clip_norm, clip_value=float(limit))
        )
        report = trainer.train_step()
        assert report.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-6)
        assert report.clipped == (limit < largest or clip_norm > 0)
        expected = {name: np.clip(g, -limit, limit) for name, g in unclipped.items()}
        norm = math.sqrt(sum((g**2).sum() for g in expected.values()))
        factor = min(clip_norm / norm, 1) if clip_norm else 1
        for name, gradient in _first_gradients(trainer).items():
            np.testing.assert_allclose(gradient, factor * expected[name], rtol=1e-4, atol=1e-9)


def _first_gradients(trainer):
    """The clipped gradients of the first step, from Adam's first moments."""
    moments = dict(tree_flatten(trainer.optimizer.state))
    return {
        name[:-2]: np.array(array, dtype=np.float64) / 0.1
        for name, array in moments.items()
        if name.endswith(".m")
    }


@pytest.mark.parametrize("beta2", [0.0, 0.9])
def test_beta2_decays_the_squares(beta2, settings):
    trainer = training.Trainer(settings("memorization", beta2=beta2))
    trainer.train_step()
    moments = dict(tree_flatten(trainer.optimizer.state))
    for name, gradient in _first_gradients(trainer).items():
        expected = (1 - beta2) * gradient**2
        np.testing.assert_allclose(np.array(moments[f"{name}.v"]), expected, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize(
    ("task", "length", "variant", "depth", "steps"),
    [
        ("memorization", 10, "3d-tlstm+cn", 5, 10 + 4),
        ("memorization", 10, "slstm", 5, 10),  # whose output is not late
        ("memorization", 1, "2d-tlstm-f", 1, 1),
        ("addition", 3, "2d-tlstm", 4, 2 * 3 + 2 + 3),
    ],
)
def test_forget_bias_by_lag_keeps_half(task, length, variant, depth, steps, settings):
    """A gate σ(b) that is applied at every one of the steps leaves half of a memory."""
    config = settings(task, length=length, variant=variant, depth=depth, forget_bias="lag")
    model = build_model(config, make_task(config))
    assert model.layer.depth == depth
    bias = np.array(model.layer.cell.bias, dtype=np.float64)[16:24]
    np.testing.assert_allclose((1 / (1 + np.exp(-bias))) ** steps, 0.5, rtol=1e-5)


def test_lag_is_from_a_symbol_to_the_answer_about_it(settings):
    """Changing the first symbol changes the targets neither sooner nor later than the lag says."""
    ones = np.ones((1, 4), dtype=np.int32)
    first = np.array([[3, 1, 1, 1]], dtype=np.int32)
    pairs = {
        "memorization": (memorization_rows(ones), memorization_rows(first)),
        "addition": (addition_rows(ones, ones), addition_rows(first, ones)),
    }
    for task, (one, other) in pairs.items():
        [asked] = np.nonzero(one.inputs[0] != other.inputs[0])[0]
        [answered] = np.nonzero(one.targets[0] != other.targets[0])[0]
        assert answered - asked == TASKS[task].memory_steps(4)


def test_state_is_carried(settings):
    """With a vanishing learning rate the chunks' last state is that of one long call."""
    trainer = training.Trainer(settings("wikipedia", learning_rate=1e-30))
    for _ in range(3):
        trainer.train_step()
    inputs = np.concatenate([trainer.task.train_batch(step).inputs for step in range(3)], axis=1)
    x = training.encode(inputs, trainer.task.input_size, mx.float32)
    _, state = trainer.model(x)
    for carried, whole in zip(trainer.carried, state, strict=True):
        np.testing.assert_allclose(np.array(carried), np.array(whole), rtol=0, atol=1e-6)


def test_fresh_batch_drops_the_state(settings):
    trainer = training.Trainer(settings("wikipedia", learning_rate=1e-30, epochs=2, samples=None))
    per_epoch = trainer.total_steps // 2
    losses = [trainer.train_step().loss for _ in range(per_epoch + 2)]
    assert losses[per_epoch:] == losses[:2]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_bpc_whatever_the_chunks(split, settings):
    config = settings("wikipedia", batch_size=2)
    trainer = training.Trainer(config)
    for _ in range(5):
        trainer.train_step()
    found = {}
    for length in (7, 10, 33, 100):  # the last is each stream in one call
        task = make_task(config.replace(length=length))
        assert task.eval_streams == 2
        metrics = training.evaluate(trainer.model, task, split)
        assert metrics["bpc"] == pytest.approx(metrics["loss"] / math.log(2))
        found[length] = metrics["bpc"]
    assert list(found.values()) == pytest.approx([found[100]] * 4, abs=1e-5)


@pytest.mark.parametrize("task", ["memorization", "addition", "mnist"])
def test_evaluation_counts(task, settings):
    trainer = training.Trainer(settings(task))
    for _ in range(30):
        trainer.train_step()
    metrics = training.evaluate(trainer.model, trainer.task, "test")
    (batch,) = trainer.task.eval_batches("test")
    nll, predictions = _reference_loss(trainer, batch)
    positions = trainer.task.answer_positions
    right = predictions[:, positions] == batch.targets[:, positions]
    expected = {"loss": nll.mean(), "accuracy": right.mean()}
    if task != "mnist":
        expected["sequence_accuracy"] = right.all(axis=1).mean()
    assert metrics == pytest.approx(expected, rel=1e-5)


def test_sequence_accuracy_of_a_known_model(settings):
    """A model that always says '0' is right where the digits of the sum are 0."""
    task = make_task(settings("addition", length=1))
    model = SequenceModel(make_layer("slstm", 11, 3, 1), 11)
    model.readout.weight = mx.zeros_like(model.readout.weight)
    model.readout.bias = mx.zeros((11,)).at[0].add(50.0)
    (batch,) = task.eval_batches("test")
    zero = batch.targets[:, task.answer_positions] == 0
    metrics = training.evaluate(model, task, "test")
    assert 0 < zero.mean() < 1
    assert metrics["accuracy"] == zero.mean()
    assert metrics["sequence_accuracy"] == zero.all(axis=1).mean()


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_leaves_the_mode(mode, settings, monkeypatch):
    """What runs is a copy in evaluation mode."""
    trainer = training.Trainer(settings("mnist"))
    modules = trainer.model.modules()
    trainer.model.train(mode)
    layer = type(trainer.model.layer)
    seen, call = [], layer.__call__

    def recorded(layer, x, state=None):
        assert all(module.training is mode for module in modules)
        seen.append({module.training for module in layer.modules()})
        return call(layer, x, state)

    monkeypatch.setattr(layer, "__call__", recorded)
    training.evaluate(trainer.model, trainer.task, "test")
    assert seen == [{False}]
    assert all(module.training is mode for module in modules)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("variant", ["2d-tlstm+cn", "slstm"])
def test_half_precision(dtype, variant, settings, tmp_path):
    """Channel normalisation's first gradients overflow float16 unless the step is tried again."""
    changes = {"variant": variant, "depth": 3, "hidden_size": 24, "batch_size": 15}
    changes |= {"samples": 300, "eval_every": 300}
    spies = {name: Spy() for name in (dtype, "float32")}
    for name, spy in spies.items():
        config = settings("memorization", dtype=name, **changes)
        training.fit(config, tmp_path / name, [spy])
    trainer = spies[dtype].trainer
    assert {a.dtype for _, a in tree_flatten(trainer.model.parameters())} == {getattr(mx, dtype)}
    assert {a.dtype for _, a in tree_flatten(trainer.weights)} == {mx.float32}
    half, full = ([report.loss for report in spy.reports] for spy in spies.values())
    np.testing.assert_allclose(half, full, rtol=0.02)
    saved = mx.load(str(tmp_path / dtype / "last" / FILE))
    assert {a.dtype for a in saved.values()} == {getattr(mx, dtype)}
    _, task, model = load_run(tmp_path / dtype)
    assert (
        training.evaluate(model, task, "test")["loss"] == spies[dtype].records[0]["evaluation_loss"]
    )


def test_small_gradients_do_not_vanish_in_float16(settings):
    """Those of the layer are some 1e-8 to 8e-6 here; float16's numbers are 6e-8 apart there."""
    found = {}
    for dtype in ("float32", "float16"):
        trainer = training.Trainer(settings("memorization", dtype=dtype))
        trainer.weights["readout"]["weight"] *= 1e-4
        trainer.model.update(trainer._rounded(trainer.weights))
        trainer.train_step()
        found[dtype] = _first_gradients(trainer)
    for name, expected in found["float32"].items():
        assert relative_error(found["float16"][name], expected) < 0.02, name


def test_diverging_step(settings, tmp_path):
    spy = Spy(on_evaluation={2: learning_rate(1e38)})
    config = settings("addition", samples=400)
    with pytest.raises(training.NonFiniteError, match=r"is (nan|inf) at step [56] .* try a lower"):
        training.fit(config, tmp_path / "run", [spy])
    assert spy.ended == 1
    _, task, model = load_run(tmp_path / "run", "last")
    metrics = training.evaluate(model, task, "test")
    assert metrics["loss"] == spy.records[-1]["evaluation_loss"]
    assert len(RunFolder.open(tmp_path / "run").read_metrics()) == 2


def test_diverging_evaluation(settings, tmp_path):
    config = settings("addition", learning_rate=1e38, eval_every=1)
    with pytest.raises(training.NonFiniteError, match="the evaluation loss is nan at step 1 "):
        training.fit(config, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "events.jsonl", "checkpoints", ".lock", "best", "last"}
    with pytest.raises(ValueError, match="'weights' must be saved in the run but"):
        load(tmp_path / "run")


def test_interrupt_between_steps(settings, tmp_path):
    spy = Spy(on_step={3: interrupt})
    handler, limit = signal.getsignal(signal.SIGINT), mx.set_cache_limit(12345)
    message = r"Interrupted after 12 samples, .* python -m mlx_tlstm\.train --resume .*run"
    with pytest.raises(training.TrainingInterrupted, match=message):
        training.fit(settings("memorization"), tmp_path / "run", [spy])
    assert mx.set_cache_limit(limit) == 12345
    assert signal.getsignal(signal.SIGINT) is handler
    assert (spy.ended, len(spy.reports), len(spy.records)) == (1, 3, 1)
    last = arrays(tmp_path / "run" / "last" / FILE)
    assert same(last, {name: np.array(a) for name, a in tree_flatten(spy.trainer.weights)})
    assert not same(last, arrays(tmp_path / "run" / "best" / FILE))
    assert len(RunFolder.open(tmp_path / "run").read_metrics()) == 1


def test_interrupt_before_an_evaluation_ends(settings, tmp_path):
    spy = Spy(on_step={4: interrupt})
    with pytest.raises(training.TrainingInterrupted, match="after 16 samples"):
        training.fit(settings("wikipedia"), tmp_path / "run", [spy])
    assert len(spy.records) == 1
    last = arrays(tmp_path / "run" / "last" / FILE)
    assert same(last, {name: np.array(a) for name, a in tree_flatten(spy.trainer.weights)})


def test_interrupt_before_the_test(settings, tmp_path):
    """The best weights are in the model by then, and must not be saved as the last ones."""
    config = settings("wikipedia", samples=16, learning_rate=1e-2)
    spy = Spy(on_evaluation={1: learning_rate(10.0), 2: interrupt})
    with pytest.raises(training.TrainingInterrupted):
        training.fit(config, tmp_path / "run", [spy])
    last = arrays(tmp_path / "run" / "last" / FILE)
    assert same(last, {name: np.array(a) for name, a in tree_flatten(spy.trainer.weights)})
    assert not same(last, arrays(tmp_path / "run" / "best" / FILE))
    assert not (tmp_path / "run" / "test.json").exists()


def test_second_interrupt_is_at_once(settings, tmp_path):
    def insist(trainer):
        # One may be lost: MLX asks for g++'s version once, by a call that ignores Ctrl-C meanwhile.
        for _ in range(100):
            interrupt(trainer)
            time.sleep(0.01)

    spy = Spy(on_step={3: insist})
    # A shell's background jobs start with SIGINT ignored, and so would this test.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            training.fit(settings("memorization"), tmp_path / "run", [spy])
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.type is KeyboardInterrupt


def test_outside_the_main_thread(settings, tmp_path):
    results = []

    def work():
        with mx.stream(mx.new_stream(mx.cpu)):
            results.append(training.fit(settings("memorization"), tmp_path / "run"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].last["samples"] == 24


def test_cache_limit_is_raised_while_training(settings, tmp_path):
    limits = []

    def look(_):
        limits.append(mx.set_cache_limit(1 << 30))

    training.fit(settings("memorization"), tmp_path / "run", [Spy(on_step={1: look})])
    before = mx.set_cache_limit(1 << 31)
    try:
        training.fit(settings("memorization"), tmp_path / "other", [Spy(on_step={1: look})])
    finally:
        mx.set_cache_limit(before)
    assert limits == [1 << 30, 1 << 31]  # what is larger stays


def test_nothing_is_overwritten(settings, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    training.fit(settings("memorization"), out)  # a folder without a run is fine
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"'out' must be a folder without a run but .*config\.json"
    ):
        training.fit(settings("addition"), out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_failed_write_leaves_the_old_file(settings, tmp_path, monkeypatch):
    result = training.fit(settings("memorization"), tmp_path / "run")
    run, before = RunFolder.open(tmp_path / "run"), arrays(tmp_path / "run" / "last" / FILE)

    def torn(file, *_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    names = set(result.folder.rglob("*"))
    monkeypatch.setattr(mx, "save_safetensors", torn)
    with pytest.raises(OSError, match=r"No space left on device: '.*/last/.*model\.safetensors"):
        run.save_model("last", result.model, {})
    assert same(before, arrays(tmp_path / "run" / "last" / FILE))
    assert set(result.folder.rglob("*")) == names


def test_the_layer_is_checked_before_data_is_loaded(settings):
    config = settings("wikipedia", data="/nowhere", variant="slstm", kernel_size=3)
    with pytest.raises(ValueError, match="kernel_size"):
        training.Trainer(config)


def test_samples_and_epochs(settings):
    for changes, steps in (
        ({"samples": 24, "epochs": 1}, 6),
        ({"samples": 10_000, "epochs": 1}, 89),  # 3,600 bytes of training text, 4 streams
        ({"samples": None, "epochs": 2}, 178),
    ):
        assert training.Trainer(settings("wikipedia", **changes)).total_steps == steps


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"'run' must be a folder that holds config\.json but got '.*run'"),
        (b'{"task": ', r"config\.json' must hold JSON but"),
        (b"\xff\xfe", r"config\.json' must hold JSON but"),
        (b"[]", r"must be a JSON object but got \[\]"),
        (b'{"task": "addition", "x": 1}', r"unknown keys but got \['x'\]"),
    ],
)
def test_damaged_runs(content, message, settings, tmp_path):
    training.fit(settings("memorization", samples=4), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        RunFolder.open(tmp_path / "run")


def test_unknown_split_and_weights(settings, tmp_path):
    result = training.fit(settings("memorization", samples=4), tmp_path / "run")
    _, task, model = load_run(tmp_path / "run", "last")
    with pytest.raises(ValueError, match=r"'split' must be one of 'validation', 'test'"):
        training.evaluate(model, task, "train")
    with pytest.raises(ValueError, match=r"'weights' must be one of 'best', 'last'"):
        load(result.folder, "first")


def test_progress_lines(settings, tmp_path, capsys):
    training.fit(settings("memorization"), tmp_path / "run", [training.Progress(bar=False)])
    start, memory, *lines = capsys.readouterr().out.splitlines()
    assert memory.startswith("memory: about ")
    assert start == (
        "memorization · 3d-tlstm+cn · L=2 M=8 · 4,170 parameters · 6 steps of 4 samples · CPU"
    )
    assert len(lines) == 3
    pattern = r" *\d+ samples  loss \d\.\d{4}  accuracy [\d.]+ %, whole sequences [\d.]+ %  "
    for line in lines:
        assert re.fullmatch(pattern + r"[\d,]+ samples/s  \d\d:\d\d left", line), line


def test_one_progress_for_two_runs(settings, tmp_path, capsys):
    config, progress = settings("memorization", samples=8), training.Progress(bar=False)
    training.fit(config, tmp_path / "first", [progress])
    training.fit(config, tmp_path / "second", [progress])
    assert len(re.findall(r" [1-9][\d,]* samples/s  00:00 left", capsys.readouterr().out)) == 2
    progress = training.Progress(bar=True)
    training.fit(config, tmp_path / "third", [progress])
    progress.on_start(training.Trainer(config))
    assert not progress._shown


def test_progress_of_an_evaluation_before_any_step(settings, tmp_path, capsys):
    """A run that was stopped between a step and its evaluation begins with that."""
    config, run = settings("memorization", samples=16), tmp_path / "run"
    with pytest.raises(training.TrainingInterrupted, match="after 8 samples"):
        training.fit(config, run, [Spy(on_step={2: interrupt})])
    training.resume(run, [training.Progress(bar=False)])
    first, second = capsys.readouterr().out.splitlines()[2:]
    assert not first.endswith("left")
    assert second.endswith("left")


def test_progress_bar(settings, tmp_path, capsys):
    training.fit(settings("wikipedia"), tmp_path / "run", [training.Progress(bar=True)])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert re.search(r"100%.* 24/24 \[.*samples/s, loss=\d\.\d{4}, bpc=\d\.\d{4}\]", err)


def test_progress_bar_of_a_resumed_run(settings, capsys):
    """It begins at what is done, which is no part of the samples/s."""
    trainer, progress = training.Trainer(settings("memorization")), training.Progress(bar=True)
    trainer.step = 3
    progress.on_start(trainer)
    progress.on_end()
    assert re.search(r" 50%.* 12/24 \[.*, \? samples/s\]", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("task", "variant", "depth", "noted"),
    [
        ("wikipedia", "2d-tlstm+ln", 2, True),
        ("wikipedia", "2d-tlstm+ln", 1, False),
        ("wikipedia", "2d-tlstm+cn", 2, False),
        ("memorization", "2d-tlstm+ln", 2, False),
    ],
)
def test_layer_normalised_language_model_is_noted(
    task, variant, depth, noted, settings, tmp_path, capsys
):
    config = settings(task, variant=variant, depth=depth, samples=4)
    training.fit(config, tmp_path / "run", [training.Progress(bar=False)])
    assert ("not causal" in capsys.readouterr().err) is noted


@pytest.mark.parametrize("fast", [True, False])
def test_slow_blas_is_noted_once(fast, settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mlx_tlstm.blas.is_fast", lambda: fast)
    config = settings("memorization")
    training.fit(config, tmp_path / "run", [training.Progress(bar=False)])
    assert capsys.readouterr().err.count("libopenblas0-pthread") == (0 if fast else 1)


def test_slow_blas_is_no_matter_to_a_gpu(settings, capsys, monkeypatch):
    monkeypatch.setattr("mlx_tlstm.blas.is_fast", lambda: False)
    trainer = training.Trainer(settings("memorization"))
    monkeypatch.setenv("MLX_TLSTM_BACKEND", "ops")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"memory_size": 1 << 34})
    training.Progress(bar=False).on_start(trainer)
    out, err = capsys.readouterr()
    assert (out.splitlines()[0].endswith(" · GPU"), err) == (True, "")


@pytest.mark.parametrize("variant", ["2d-tlstm+cn", "2d-tlstm+ln", "slstm"])
@pytest.mark.parametrize("task", ["wikipedia", "memorization"])
def test_long_sequences_are_evaluated_in_parts(task, variant, settings, monkeypatch):
    """With the same result, also where an output depends on later inputs."""
    config = settings(task, variant=variant, depth=3, length=13)
    trainer = training.Trainer(config)
    expected = training.evaluate(trainer.model, trainer.task, "test", all_metrics=True)
    steps, layer = [], type(trainer.model.layer)
    prepare = layer._prepare

    def recorded(layer, x, state, flush):
        steps.append(x.shape[1] + flush)
        return prepare(layer, x, state, flush)

    monkeypatch.setattr(layer, "_prepare", recorded)
    monkeypatch.setattr(training.objective, "GRAPH_STEPS", 5)
    found = training.evaluate(trainer.model, trainer.task, "test", all_metrics=True)
    assert found == pytest.approx(expected, rel=1e-6)
    assert 0 < max(steps) <= 5


def test_a_graph_goes_through_the_layers_of_a_stack():
    """Some ten thousand of them, one after the other, are more than a thread's stack holds."""
    deep, tensor = (make_layer(name, 3, 4, 10) for name in ("slstm", "2d-tlstm"))
    assert training.objective.graph_steps(deep) == 300
    assert training.objective.graph_steps(make_layer("slstm", 3, 4, 2)) == 1000
    assert training.objective.graph_steps(tensor) == 1000
    assert training.objective.compiles(deep, 300, 1)
    assert not training.objective.compiles(deep, 301, 1)


def test_long_sequences_are_trained_without_a_graph(settings, monkeypatch):
    """Tracing them takes longer than it saves; the steps are the same."""
    config = settings("wikipedia", length=13)
    expected = training.Trainer(config)
    reports = [expected.train_step() for _ in range(3)]
    monkeypatch.setattr(training.objective, "GRAPH_STEPS", 12)
    found = training.Trainer(config)
    monkeypatch.setattr(CompiledFunction, "__call__", None)
    for report in reports:
        assert found.train_step() == pytest.approx(report, rel=1e-5)

"""A cell of the user's own, trained, saved, loaded and gone on with by its name."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import gc
import json
import logging
import pickle
import signal
import time
from types import SimpleNamespace
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from comparison import assert_close
from mlx import nn
from test_memory_prediction import check_prediction
from tiny_tasks import Stop, StopAt, load_run

import mlx_tlstm
from mlx_tlstm import (
    VARIANTS,
    CellVariant,
    Recurrent,
    SequenceModel,
    StreamingSession,
    make_layer,
    training,
)
from mlx_tlstm.models.generation import generate
from mlx_tlstm.recurrence import binding
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.recurrence.snapshot import snapshot
from mlx_tlstm.tasks import TASKS, Memorization
from mlx_tlstm.tasks.seeding import Stream, random_generator
from mlx_tlstm.training import trainer as trainer_module
from mlx_tlstm.training.origin import training_command
from mlx_tlstm.training.runs import RunFolder
from mlx_tlstm.training.workers import Workers


class State(NamedTuple):
    hidden: mx.array
    layers: dict[str, list[mx.array]]
    steps: mx.array


class GRU(nn.Module):
    """Stacked gated units, whose state is a tree, with the number of steps in it."""

    def __init__(self, input_size: int, hidden_size: int, depth: int) -> None:
        super().__init__()
        self.hidden_size, self.depth = hidden_size, depth
        sizes = [input_size, *[hidden_size] * (depth - 1)]
        self.gates = [nn.Linear(size + hidden_size, 2 * hidden_size) for size in sizes]
        self.candidates = [nn.Linear(size + hidden_size, hidden_size) for size in sizes]

    def initial_state(self, batch_size: int) -> State:
        def zeros() -> mx.array:
            return mx.zeros((batch_size, self.hidden_size), self.gates[0].weight.dtype)

        return State(zeros(), {"below": [zeros() for _ in range(self.depth - 1)]}, mx.array(0))

    def __call__(self, x: mx.array, state: State) -> tuple[mx.array, State]:
        past, after = [*state.layers["below"], state.hidden], []
        for gates, candidate, h in zip(self.gates, self.candidates, past, strict=True):
            z, r = mx.split(mx.sigmoid(gates(mx.concatenate([x, h], axis=-1))), 2, axis=-1)
            new = mx.tanh(candidate(mx.concatenate([x, r * h], axis=-1)))
            x = (1 - z) * h + z * new
            after.append(x)
        return x, State(x, {"below": after[:-1]}, state.steps + 1)


class Plain(nn.Module):
    """One layer, with a state of one array and a forget bias of its own."""

    def __init__(self, input_size: int, hidden_size: int, forget_bias: float = 3.0) -> None:
        super().__init__()
        self.input_size, self.forget_bias = input_size, forget_bias
        self.from_input = nn.Linear(input_size, hidden_size)

    def initial_state(self, batch_size: int) -> mx.array:
        return mx.zeros((batch_size, self.from_input.weight.shape[0]))

    def __call__(self, x: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
        state = mx.tanh(self.from_input(x) + state)
        return state, state


@pytest.fixture(autouse=True)
def variants(monkeypatch):
    monkeypatch.setitem(VARIANTS, "gru", CellVariant(GRU, {"clip_norm": 0.0, "clip_value": 1.0}))
    monkeypatch.setitem(VARIANTS, "plain", CellVariant(Plain))


def same(model, other):
    x = mx.random.normal((3, 5, model.layer.input_size or 65), key=mx.random.key(0))
    assert mx.array_equal(model(x)[0], other(x)[0])


def test_trained_evaluated_saved_and_loaded(settings, tmp_path):
    config = settings("memorization", variant="gru", depth=3, samples=48)
    result = training.fit(config, tmp_path / "run")
    assert result.last["samples"] == 48
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0]
    model = mlx_tlstm.load(tmp_path / "run")
    assert isinstance(model.layer, Recurrent)
    assert len(model.layer.cell.gates) == 3
    task = training.Trainer(config).task
    assert training.evaluate(model, task, "test")["loss"] == pytest.approx(result.test["loss"])
    model.save(tmp_path / "model")
    same(model, mlx_tlstm.load(tmp_path / "model"))
    assert training_command(config) is model.metadata.command is None  # no command knows the cell


def test_the_settings_of_the_variant_take_the_tasks_place(settings):
    config = settings("memorization").for_variant("gru")
    assert (config.variant, config.clip_norm, config.clip_value) == ("gru", 0.0, 1.0)
    assert config.depth == 2  # the cell has a depth of its own
    assert settings("memorization").for_variant("plain").depth == 1


@pytest.mark.parametrize("task", ["memorization", "wikipedia", "mnist"])
@pytest.mark.parametrize("name", ["gru", "plain"])
def test_goes_on_bit_for_bit(task, name, settings, tmp_path):
    """Also on text, whose states are carried from batch to batch and so kept in checkpoints."""
    often = {"checkpoint_every": 2, "checkpoint_seconds": 0, "samples": 48}
    config = settings(task, **often).for_variant(name)
    whole = training.fit(config, tmp_path / "whole")
    with pytest.raises(Stop):
        training.fit(config, tmp_path / "run", [StopAt(steps=5)])
    again = training.resume(tmp_path / "run")
    assert again.test == whole.test
    for name in ("best", "last"):
        files = [tmp_path / run / name / "model.safetensors" for run in ("whole", "run")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "changes", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"accumulate": 2}]
)
def test_other_ways_to_train(changes, settings, tmp_path):
    config = settings("wikipedia", variant="gru", **changes)
    result = training.fit(config, tmp_path / "run")
    assert np.isfinite(result.last["evaluation_loss"])
    assert result.model.layer.dtype == getattr(mx, config.dtype)


def test_recomputing_changes_no_weight(settings, tmp_path):
    config = settings("memorization", variant="gru", depth=2)
    plain, recomputed = (
        training.fit(config.replace(recompute=recompute), tmp_path / str(recompute)).model
        for recompute in (False, True)
    )
    assert recomputed.layer.checkpoint == 1
    same(plain, recomputed)


def test_generates_text(settings, tmp_path):
    config = settings("wikipedia", variant="gru")
    model = training.fit(config, tmp_path / "run").model
    symbols = list(generate(model, [3, 1, 4], 7, seed=0))
    assert len(symbols) == 7
    assert max(symbols) < len(model.metadata.symbols)


def test_a_program_that_does_not_know_the_cell(settings, tmp_path, monkeypatch):
    config = settings("memorization", variant="gru", checkpoint_every=1)
    with pytest.raises(Stop):
        training.fit(config, tmp_path / "run", [StopAt(steps=4)])
    monkeypatch.delitem(VARIANTS, "gru")
    advice = "'variant' must be one of 'slstm', .* put into VARIANTS, but got 'gru'"
    for way in (training.resume, mlx_tlstm.load):
        with pytest.raises(ValueError, match=advice):
            way(tmp_path / "run")


@pytest.mark.parametrize(
    ("task", "variant"),
    [("memorization", "plain"), ("mine", "lstm"), ("addition", "lstm"), ("memorization", "irnn")],
)
def test_an_interrupted_run_says_how_to_go_on(task, variant, settings, tmp_path, monkeypatch):
    """By Python, since no command knows the cell or task, or has another one under its name."""

    class Mine(Memorization):
        name = task

    if task != "memorization":
        monkeypatch.setitem(TASKS, task, Mine)
    monkeypatch.setitem(VARIANTS, "irnn", CellVariant(Plain))

    class Interrupt(training.Callback):
        def on_step(self, trainer, report):
            signal.raise_signal(signal.SIGINT)

    config = settings("memorization", variant=variant, depth=1).replace(task=task)
    with pytest.raises(training.TrainingInterrupted, match=r"mlx_tlstm\.training\.resume\('"):
        training.fit(config, tmp_path / "run", [Interrupt()])
    assert mlx_tlstm.load(tmp_path / "run", "last").metadata.command is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 2}, r"'depth \(of plain\)' must be 1 but got 2"),
        ({"kernel_size": 3}, r"'kernel_size \(of plain\)' must be None but got 3"),
    ],
)
def test_settings_that_the_cell_does_not_have(changes, message, settings, tmp_path):
    config = settings("memorization", **{"variant": "plain", "depth": 1, **changes})
    with pytest.raises(ValueError, match=message):
        training.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_backend_is_refused():
    with pytest.raises(ValueError, match=r"'backend \(of plain\)' must be one of None, 'ops'"):
        make_layer("plain", 3, 5, 1, backend="metal")


def test_integers_that_are_no_parameter(settings, tmp_path, monkeypatch):
    class Hidden(Plain):
        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            self._order = mx.arange(hidden_size)

        def __call__(self, x, state):
            output, state = super().__call__(x, state)
            return output[:, self._order], state

    monkeypatch.setitem(VARIANTS, "hidden", CellVariant(Hidden))
    result = training.fit(settings("memorization").for_variant("hidden"), tmp_path / "run")
    same(result.model, mlx_tlstm.load(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("_order", lambda M: mx.random.permutation(M)),
        ("_mask", lambda M: mx.array(np.random.random(M))),
        ("mask", lambda M: np.random.random(M)),
        ("_parts.0.mask.weight", lambda M: [{"mask": nn.Linear(2, 3)}]),  # no module that MLX saves
    ],
)
def test_no_array_that_loading_would_draw_anew(name, made, settings, tmp_path, monkeypatch):
    class Drawn(Plain):
        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            setattr(self, name.partition(".")[0], made(hidden_size))

    monkeypatch.setitem(VARIANTS, "drawn", CellVariant(Drawn))
    message = f"'layer.cell.{name}' must be the same array whenever its module is made"
    with pytest.raises(ValueError, match=message):
        training.fit(settings("memorization").for_variant("drawn"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    mx.random.seed(0)
    model = SequenceModel(make_layer("drawn", 3, 40, 1), 4)
    mx.random.seed(0)
    with pytest.raises(ValueError, match=message):
        model.save(tmp_path / "model")


def test_an_array_drawn_from_a_key_of_its_own(settings, tmp_path, monkeypatch):
    class Keyed(Plain):
        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            self._order = mx.random.permutation(hidden_size, key=mx.random.key(0))
            self._unused = [None, mx.array([float("nan")]), "text"]
            self.table = np.array([1.0, np.nan])

    monkeypatch.setitem(VARIANTS, "keyed", CellVariant(Keyed))
    result = training.fit(settings("memorization").for_variant("keyed"), tmp_path / "run")
    loaded = mlx_tlstm.load(tmp_path / "run")
    same(result.model, loaded)
    assert mx.array_equal(loaded.layer.cell._order, result.model.layer.cell._order)


def test_the_cell_gets_the_forget_bias_if_it_takes_one():
    assert make_layer("plain", 3, 5, 1, forget_bias=2.5).cell.forget_bias == 2.5
    make_layer("gru", 3, 5, 2, forget_bias=2.5)


def test_a_cell_that_fails_is_told_before_there_is_a_folder(settings, tmp_path, monkeypatch):
    class Broken(Plain):
        def __call__(self, x, state):
            return state

    monkeypatch.setitem(VARIANTS, "broken", CellVariant(Broken))
    config = settings("memorization", variant="broken", depth=1)
    with pytest.raises(ValueError, match=r"'cell' must be a module that returns \(output, state\)"):
        training.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Lazy(Plain):
    """It makes a parameter in its first step."""

    def __call__(self, x, state):
        if "scale" not in self:
            self.scale = mx.ones((state.shape[-1],))
        output, state = super().__call__(x, state)
        return self.scale * output, state


class Permuted(Plain):
    """It holds integers as a parameter."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.order = mx.arange(hidden_size)

    def __call__(self, x, state):
        output, state = super().__call__(x, state)
        return output[:, self.order], state


class Frozen(Permuted):
    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.freeze(keys=["order"], recurse=False)


def made_otherwise(input_size, hidden_size, made=[]):  # noqa: B006
    """Each time a cell with more parts than before."""
    made.append(nn.Linear(3, 3))
    cell = Plain(input_size, hidden_size)
    cell.parts = list(made)
    return cell


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Lazy, r"'cell' must .* but got \['layer.cell.scale'\]|'cell' must leave the arrays"),
        (Permuted, r"'layer.cell.order' must be of floating-point .* '_'.* but got mlx.core.int32"),
        (Frozen, "'layer.cell.order' must be of floating-point"),
        (made_otherwise, "'load' would refuse it"),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"recompute": True}, {"dtype": "bfloat16"}])
def test_a_model_that_could_not_be_loaded(cell, message, changes, settings, tmp_path, monkeypatch):
    """It is told before there is a folder."""
    monkeypatch.setitem(VARIANTS, "wrong", CellVariant(cell))
    config = settings("memorization", **changes).for_variant("wrong")
    with pytest.raises(ValueError, match=message):
        training.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Normalised(Plain):
    """With statistics that each step in training mode updates."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.norm = nn.BatchNorm(hidden_size)

    def __call__(self, x, state):
        output, state = super().__call__(x, state)
        return self.norm(output), state


class Counting(Plain):
    """With an array of its own, trained or not, that each step replaces."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.calls, self._calls = mx.array(0.0), [mx.array(0)]

    def __call__(self, x, state):
        output, state = super().__call__(x, state)
        if self.training:
            self.calls = self.calls + 1
        else:
            self._calls[0] = self._calls[0] + 1
        return output, state


class Elsewhere(Plain):
    """It keeps an array in an object that is no module."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.kept = SimpleNamespace(mean=mx.zeros((input_size,)))

    def __call__(self, x, state):
        self.kept.mean = 0.9 * self.kept.mean + 0.1 * x.mean(axis=0)
        return super().__call__(x - self.kept.mean, state)


UPDATING = [(Normalised, "norm.running_mean"), (Counting, "calls"), (Elsewhere, "an object")]


@pytest.mark.parametrize(("cell", "name"), UPDATING)
@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"dtype": "float16"}])
def test_arrays_that_a_step_updates(cell, name, changes, settings, tmp_path, monkeypatch):
    """The updates would be lost."""
    monkeypatch.setitem(VARIANTS, "updating", CellVariant(cell))
    config = settings("memorization", **changes).for_variant("updating")
    with pytest.raises(ValueError, match=rf"'(model|cell)' must be one whose .*{name}"):
        training.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("cell", "work"),
    [
        (Normalised, "session"),
        (Counting, "session"),
        (Counting, "evaluation"),
        (Counting, "generation"),
    ],
)
def test_arrays_that_a_step_updates_elsewhere(cell, work, settings, monkeypatch):
    """Uncompiled they are the user's affair."""
    task = training.Trainer(settings("wikipedia")).task
    size = task.input_size
    model = SequenceModel(Recurrent(cell(size, 5)), size)
    x = mx.random.normal((3, 2, size))
    before = mx.array(model.layer.cell.norm.running_mean if cell is Normalised else 0.0)
    model(x)
    after = model.layer.cell.norm.running_mean if cell is Normalised else model.layer.cell.calls
    assert not mx.array_equal(before, after)
    ways = {
        "session": lambda: StreamingSession(model).push(x[:, 0]),
        "evaluation": lambda: training.evaluate(model, task, "test"),
        "generation": lambda: list(generate(model, [1], 2)),
    }
    with pytest.raises(
        ValueError, match="'model' must be one whose steps replace none of its arrays"
    ):
        ways[work]()


def test_arrays_that_are_made_once(settings, tmp_path, monkeypatch):
    """Not as a parameter, they may be made in the first step."""

    class Cached(Plain):
        def __call__(self, x, state):
            if "_order" not in self:
                self._order = mx.arange(state.shape[-1])
            output, state = super().__call__(x, state)
            return output[:, self._order], state

    monkeypatch.setitem(VARIANTS, "cached", CellVariant(Cached))
    result = training.fit(settings("memorization").for_variant("cached"), tmp_path / "run")
    same(result.model, mlx_tlstm.load(tmp_path / "run"))


def reading(how):
    class Reading(Plain):
        def __call__(self, x, state):
            output, state = super().__call__(x, state)
            return output * how(state), state

    return Reading


@pytest.mark.parametrize(
    "how",
    [
        lambda h: h.max().item(),
        lambda h: 2 if h.sum() > 0 else 1,
        lambda h: float(np.array(h).max()),
    ],
)
def test_a_cell_that_reads_values(how, settings, tmp_path, monkeypatch):
    message = r"must compute without reading an array's values .* MLX_DISABLE_COMPILE=1"
    monkeypatch.setitem(VARIANTS, "reading", CellVariant(reading(how)))
    with pytest.raises(ValueError, match=message):
        training.fit(settings("memorization").for_variant("reading"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    model = SequenceModel(Recurrent(reading(how)(3, 5)), 4)
    with pytest.raises(ValueError, match=message):
        StreamingSession(model).push(mx.ones((3,)))
    mx.disable_compile()
    try:
        training.fit(settings("memorization").for_variant("reading"), tmp_path / "run")
    finally:
        mx.enable_compile()


def test_a_part_that_is_replaced_before_the_first_step(settings, tmp_path):
    config = settings("memorization", depth=1, variant="plain")
    trainer, run = training.prepare(config, tmp_path / "run")
    trainer.model.readout = nn.Sequential(trainer.model.readout)
    with pytest.raises(ValueError, match="'load' would refuse it"):
        training.train(trainer, run)
    assert trainer.step == 0


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("gru", "a class or function with arguments input_size and hidden_size but got 'gru'"),
        (lambda hidden_size: None, "with input_size and hidden_size"),
        (lambda input_size, hidden_size, /: None, "with input_size and hidden_size"),
        (dict, "with input_size and hidden_size"),
        (lambda input_size, hidden_size, width: None, "of no other arguments .* needs width"),
    ],
)
def test_what_is_no_cell(cell, message):
    with pytest.raises(ValueError, match=rf"\[CellVariant\] 'cell' must be .*{message}"):
        CellVariant(cell)


def test_a_function_may_make_the_cell(settings, tmp_path, monkeypatch):
    def narrow(input_size, hidden_size, depth, scale=2):
        return GRU(input_size, hidden_size // scale, depth)

    monkeypatch.setitem(VARIANTS, "narrow", CellVariant(narrow))
    model = training.fit(settings("memorization", variant="narrow"), tmp_path / "run").model
    assert model.layer.hidden_size == 4
    same(model, mlx_tlstm.load(tmp_path / "run"))


def test_a_replaced_part_is_not_saved(tmp_path):
    model = SequenceModel(make_layer("gru", 3, 5, 2), 4)
    model.layer.cell.candidates[0] = nn.Linear(8, 5, bias=False)
    with pytest.raises(ValueError, match=r"nothing was written"):
        model.save(tmp_path / "model")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("name", "depth"), [("gru", 3), ("plain", 1)])
def test_the_predicted_memory(name, depth, recompute):
    """Never too low; for so small a step as the second cell's up to thrice of what is needed."""
    sizes = {"hidden_size": 200, "length": 60, "batch_size": 60}
    check_prediction(factor=3.0, variant=name, depth=depth, recompute=recompute, **sizes)


def test_long_sequences_keep_no_gradient_of_each_step():
    """122 steps of a cell of 2.2 MiB: the weights' gradients would be 270 MiB."""
    sizes = {"hidden_size": 400, "length": 60, "batch_size": 4}
    for recompute in (False, True):
        sizes |= {"variant": "gru", "depth": 1, "recompute": recompute}
        measured = check_prediction(factor=5.0, **sizes)
        assert measured < 50 << 20


def test_what_cannot_be_predicted_is_said(settings, tmp_path, monkeypatch, capsys):
    """MLX writes out no function with a gradient of its own, which hides what a step keeps."""

    class Hidden(Plain):
        def __call__(self, x, state):
            squashed = mx.custom_function(mx.tanh)
            squashed.vjp(lambda primal, cotangent, output: cotangent * (1 - output * output))
            state = squashed(self.from_input(x) + state)
            return state, state

    monkeypatch.setitem(VARIANTS, "hidden", CellVariant(Hidden))
    for variant, words in [("plain", "memory: about "), ("hidden", "memory: at least ")]:
        config = settings("memorization").for_variant(variant)
        training.fit(config, tmp_path / variant, [training.Progress(bar=False)])
        line = capsys.readouterr().out.splitlines()[1]
        assert line.startswith(words)
        assert ("without what the cell keeps" in line) == (variant == "hidden")


class Memoryless(nn.Module):
    """No state, and no attribute that says the width of an input."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size, self.from_input = hidden_size, nn.Linear(input_size, hidden_size)

    def initial_state(self, batch_size: int) -> None:
        return None

    def __call__(self, x: mx.array, state: None) -> tuple[mx.array, None]:
        return mx.tanh(self.from_input(x)), None


def test_a_cell_without_a_state(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, "memoryless", CellVariant(Memoryless))
    config = settings("memorization").for_variant("memoryless")
    result = training.fit(config, tmp_path / "run")
    _, task, model = load_run(tmp_path / "run")  # whose sizes are those of the data
    assert model.layer.input_size == task.input_size == 65
    assert training.evaluate(model, task, "test")["loss"] == pytest.approx(result.test["loss"])


@pytest.mark.parametrize("frozen", [False, True])
def test_restored_where_no_cell_is_trained(frozen, settings, monkeypatch):
    """It has no parameters, or they are frozen."""

    class Untrained(Plain):
        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            self.activation, self.hidden_size = nn.Tanh(), hidden_size
            self.freeze()
            if not frozen:
                del self["from_input"]

        def initial_state(self, batch_size):
            return mx.zeros((batch_size, self.hidden_size))

        def __call__(self, x, state):
            inputs = self.from_input(x) if frozen else x[:, :1]
            state = self.activation(inputs + state)
            return state, state

    monkeypatch.setitem(VARIANTS, "untrained", CellVariant(Untrained))
    config = settings("memorization").for_variant("untrained")
    whole, again = training.Trainer(config), training.Trainer(config)
    whole.train_step()
    again.restore(1, whole.arrays())
    assert again.train_step() == whole.train_step()


class Noisy(Plain):
    """It adds random numbers in each step, in evaluation mode too."""

    def __call__(self, x, state):
        output, state = super().__call__(x, state)
        return output + mx.random.normal(output.shape), state


@pytest.fixture
def noisy(monkeypatch):
    monkeypatch.setitem(VARIANTS, "noisy", CellVariant(Noisy))


def drawn_losses(config, compiled, seed=0):
    """Losses of four steps on one batch that change no weight; ``seed`` seeds what is drawn."""
    trainer = training.Trainer(config)
    trainer.config = config.replace(seed=seed)
    trainer.optimizer.learning_rate = 0.0
    batch = trainer.task.train_batch(0)
    trainer.task.train_batch = lambda step: batch
    trainer._compiles = compiled
    mx.random.seed(1)
    losses = [trainer.train_step().loss for _ in range(4)]
    assert mx.random.state[0].tolist() == mx.random.key(1).tolist()
    return losses


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"recompute": True}])
def test_random_numbers_are_new_in_each_step(changes, settings, noisy):
    config = settings("memorization", **changes).for_variant("noisy")
    losses = drawn_losses(config, True)
    assert len(set(losses)) == 4
    assert losses == pytest.approx(drawn_losses(config, False), rel=1e-5)
    other_losses = drawn_losses(config, True, seed=5)
    assert not set(other_losses) & set(losses)


def test_each_part_of_a_batch_has_random_numbers_of_its_own(settings, noisy):
    """In each process, and in each step; none is what the data are drawn from."""
    config = settings("memorization", accumulate=2).for_variant("noisy")
    keys = set()
    for rank in (0, 1):
        trainer = training.Trainer(config, Workers(rank, 2))
        for trainer.step in range(3):
            keys |= {tuple(trainer._random_key(part).tolist()) for part in (0, 1)}
    assert len(keys) == 12
    for stream in (Stream.TRAIN, Stream.VALIDATION, Stream.TEST):
        for index in range(12):
            number = random_generator(config.seed, stream, index).bit_generator.random_raw()
            assert tuple(mx.random.key(number).tolist()) not in keys


def test_evaluation_and_generation_leave_the_random_state(settings, noisy):
    trainer = training.Trainer(settings("wikipedia").for_variant("noisy"))
    mx.random.seed(1)
    losses = [training.evaluate(trainer.model, trainer.task, "test")["loss"] for _ in range(2)]
    texts = [tuple(generate(trainer.model, [3, 1], 9, seed=seed)) for seed in (0, 0, 1, 2)]
    assert mx.random.state[0].tolist() == mx.random.key(1).tolist()
    assert losses[0] == losses[1]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3
    mx.random.seed(2)
    assert training.evaluate(trainer.model, trainer.task, "test")["loss"] != losses[0]


def call(function, z):
    return function(z)


def repeated(cell):
    def nested(z, times=1):
        return nested(z, times - 1) if times else cell.mixed(z)

    return nested


def with_attribute(cell):
    def function(z):
        return function.mixed(z)

    function.mixed = cell.mixed
    return function


#: What a cell's constructor may keep of its own method, in place of calling it.
KEPT = {
    "method": lambda cell: cell.mixed,
    "lambda": lambda cell: lambda z: cell.mixed(z),
    "function in a function": lambda cell: (lambda f: lambda z: f(z))(lambda z: cell.mixed(z)),
    "recursion": repeated,
    "default": lambda cell: lambda z, mixed=cell.mixed: mixed(z),
    "keyword": lambda cell: lambda z, *, parts=({"a": [cell]},): parts[0]["a"][0].mixed(z),
    "attribute": with_attribute,
    "partial": lambda cell: functools.partial(Bound.mixed, cell),
    "partial of a method": lambda cell: functools.partial(call, cell.mixed),
    "module": lambda cell: nn.Sequential(nn.Identity(), lambda z: cell.mixed(z)),
}


class Bound(Plain):
    """Its step calls what it keeps of a method that differs from mode to mode."""

    keep = None

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.dropout = nn.Dropout(0.5)
        if self.keep is not None:
            self.kept = [self.keep(self)] if self.keep is repeated else self.keep(self)

    def mixed(self, z):
        return mx.tanh(self.dropout(self.from_input(z)))

    def __call__(self, x, state):
        kept = getattr(self, "kept", self.mixed)
        output = kept[0](x) if isinstance(kept, list) else kept(x)
        return output + state, output


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("compiled", [True, False])
def test_functions_that_are_bound_to_the_cell(kept, compiled, settings, tmp_path, monkeypatch):
    """A copy of the model runs: with its own weights and in its own mode, in these too."""
    config = settings("memorization", samples=48, learning_rate=0.1)
    monkeypatch.setattr(trainer_module, "compiles", lambda *_: compiled)
    losses = []
    for keep in (None, KEPT[kept]):
        kind = type("Kept", (Bound,), {"keep": keep and staticmethod(keep)})
        monkeypatch.setitem(VARIANTS, "kept", CellVariant(kind))
        result = training.fit(config.for_variant("kept"), tmp_path / str(bool(keep)))
        model, task = mlx_tlstm.load(result.folder), training.Trainer(config).task
        for mode in (True, False):
            found = training.evaluate(model.train(mode), task, "test")["loss"]
            assert found == pytest.approx(result.test["loss"], rel=1e-6)
        session = StreamingSession(model)
        x = mx.eye(model.layer.input_size)
        pushed = mx.stack([session.push(row) for row in x])
        assert_close(pushed, model(x)[0], 1e-5)
        losses.append([result.last["loss"], result.test["loss"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


class Holder:
    def __init__(self, module):
        self.module = module


class Slotted:
    __slots__ = ("module",)

    def __init__(self, module):
        self.module = module


class Around(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def __call__(self, z):
        return self.function(z)


def cyclic(cell):
    one, other = Holder(None), Holder(cell.dropout)
    one.module, other.back = other, one
    return one


#: What leads to modules of a cell, and cannot be made anew.
REFUSED = {
    "object": lambda cell: Holder(cell.from_input),
    "nested": lambda cell: Holder([Holder({"a": cell.from_input})]),
    "in a lambda": lambda cell: (lambda holder: lambda z: holder.module.mixed(z))(Holder(cell)),
    "slots": lambda cell: Slotted(cell.from_input),
    "cyclic": cyclic,
    "another module": lambda cell: nn.Sequential(cell.from_input).__call__,
    "another module's function": lambda cell: Around(cell.mixed).__call__,
    "deque": lambda cell: collections.deque([cell.from_input]),
    "defaultdict": lambda cell: Holder(collections.defaultdict(list, a=cell.from_input)),
    "cache": lambda cell: functools.lru_cache(cell.mixed),
    "compiled": lambda cell: mx.compile(lambda z: cell.mixed(z)),
    "compiled method": lambda cell: mx.compile(cell.mixed),
    "compiled partial": lambda cell: mx.compile(functools.partial(Bound.mixed, cell)),
    "vmap": lambda cell: mx.vmap(lambda z: cell.mixed(z)),
    "grad": lambda cell: mx.grad(lambda z: cell.mixed(z).sum()),
}


@pytest.mark.parametrize("kept", REFUSED)
def test_objects_that_lead_to_the_cell_are_refused(kept, settings, tmp_path, monkeypatch):
    """They cannot be made anew, and the copy would read the weights of the model through them."""
    kind = type("Kept", (Bound,), {"keep": staticmethod(REFUSED[kept])})
    monkeypatch.setitem(VARIANTS, "kept", CellVariant(kind))
    with pytest.raises(ValueError, match=r"\[Kept\] 'kept' must be of Python functions, lists"):
        training.fit(settings("memorization").for_variant("kept"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"\[Kept\] 'kept' must be of Python functions, lists"):
        StreamingSession(SequenceModel(Recurrent(kind(3, 4)), 5)).push(mx.zeros((3,)))


def test_a_compiled_module_is_refused():
    """It says that it is a module, but has no other's parts."""
    cell = Bound(3, 4)
    cell.kept = mx.compile(cell.from_input)
    with pytest.raises(ValueError, match=r"\[Bound\] 'kept' must be of Python functions, lists"):
        snapshot(cell)


def linked(count):
    first = None
    for _ in range(count):
        first = Holder(first)
    return first


def test_objects_that_lead_nowhere_take_no_time_and_no_stack(monkeypatch):
    """They are walked through once for many copies, and no copy is kept for that."""
    cell = Bound(3, 4)
    cell.vocabulary = Holder({str(number): number for number in range(50_000)})
    cell.linked, cell.logger = linked(5_000), logging.getLogger(__name__)
    shared = len
    for _ in range(30):
        shared = functools.partial(call, shared, shared)
    cell.shared, cell.parts = shared, [nn.Linear(2, 2)]
    walked, held = [], binding._held
    monkeypatch.setattr(binding, "_held", lambda one: walked.append(0) or held(one))

    def parts():
        gc.collect()
        return sum(type(one) is nn.Linear for one in gc.get_objects())

    model = SequenceModel(Recurrent(cell), 5).eval()
    compiled, x = CompiledFunction(model, lambda model, x: model(x)[0]), mx.zeros((1, 2, 3))
    expected = compiled.plain(x)
    assert len(walked) > 5_000
    walked.clear()
    before = parts()
    for _ in range(20):
        assert mx.array_equal(compiled.plain(x), expected)
    assert len(walked) < 1_000
    assert parts() == before


def test_a_function_that_leads_to_no_module_stays_as_it_is():
    holder = Holder(len)
    cell = Bound(3, 4)
    functions = [nn.gelu, mx.tanh, len, lambda z: holder.module(z), functools.partial(call, len)]
    cell.functions, cell.function = functions, functions[3]
    copy = snapshot(cell)
    assert copy.functions == functions
    assert copy.functions is not functions
    assert copy.function is functions[3]


class Drawn(Memoryless):
    """Its output is the noise by which a symbol is drawn."""

    def __call__(self, x, state):
        return mx.random.gumbel((len(x), self.hidden_size)), None


def test_the_layers_numbers_are_not_those_that_symbols_are_drawn_by():
    """Were they, twice the same noise would be largest where it is once."""
    model = SequenceModel(Recurrent(Drawn(5, 5)), 5)
    model.readout.weight, model.readout.bias = mx.eye(5), mx.zeros((5,))
    likeliest = list(generate(model, [0], 20, temperature=0))
    assert list(generate(model, [0], 20)) != likeliest


def test_a_session_draws_anew_for_each_input(noisy):
    model = SequenceModel(make_layer("noisy", 3, 5, 1), 4)
    x = mx.ones((3,))
    pushed = []
    for seed in (1, 1, 2):
        mx.random.seed(seed)
        session = StreamingSession(model)
        pushed.append([session.push(x).tolist() for _ in range(4)])
    assert pushed[0] == pushed[1] != pushed[2]
    mx.random.seed(1)
    assert_close(mx.array(pushed[0]), model(mx.stack([x] * 4))[0], 1e-5)


def test_many_arrays_that_no_step_has_changed(settings):
    """511 of them, where a sequence has six steps: compiled at once they would take minutes."""
    for recompute in (False, True):
        config = settings("memorization", recompute=recompute).for_variant("dilated-gru")
        trainer = training.Trainer(config.replace(depth=9))
        assert np.isfinite(trainer.train_step().loss)


def test_a_graph_of_thousands_of_equal_arrays(settings):
    """8191 zeros, of which a sequence changes six times 13: merged one by one it took a minute."""
    start = time.process_time()
    config = settings("memorization", variant="dilated-gru", depth=13, hidden_size=2)
    trainer = training.Trainer(config)
    assert np.isfinite(trainer.train_step().loss)
    assert np.isfinite(training.evaluate(trainer.model, trainer.task, "test")["loss"])
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "name", ["u/x", "../../evil", "ü" * 300, "a\nb", "nul\0", "..", "a b", "\\"]
)
def test_any_name_has_a_default_folder(name, settings, tmp_path, monkeypatch):
    """A variant's, and a task's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VARIANTS, name, CellVariant(Plain))
    monkeypatch.setitem(TASKS, name, TASKS["memorization"])
    config = settings("memorization", variant=name).replace(task=name)
    folders = [RunFolder.create(None, config) for _ in range(2)]
    assert [folder.path.resolve().parent for folder in folders] == [tmp_path / "runs"] * 2
    assert sorted(tmp_path.glob("runs/*")) == sorted(folder.path.resolve() for folder in folders)


def test_names_that_two_arrays_would_share(settings, monkeypatch):
    class Dots(Plain):
        def initial_state(self, batch_size):
            zeros = super().initial_state(batch_size)
            return {"a.b": zeros, "a": {"b": zeros}}

        def __call__(self, x, state):
            output, after = super().__call__(x, state["a.b"])
            return output, {"a.b": after, "a": {"b": after}}

    monkeypatch.setitem(VARIANTS, "dots", CellVariant(Dots))
    with pytest.raises(ValueError, match="'state' must be of arrays whose paths differ"):
        training.Trainer(settings("memorization").for_variant("dots"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (GRU, r"\[VARIANTS\] 'wrong' must be a variant, as CellVariant makes one of a cell"),
        (CellVariant(Plain, {"clip_nrom": 1.0}), r"'settings \(of wrong\)' .*\['clip_nrom'\]"),
        (CellVariant(Plain, {"variant": "gru"}), r"'settings \(of wrong\)' .*\['variant'\]"),
    ],
)
def test_entries_that_are_no_variants(entry, message, settings, monkeypatch):
    monkeypatch.setitem(VARIANTS, "wrong", entry)
    with pytest.raises(ValueError, match=message):
        settings("memorization").for_variant("wrong")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"hidden_size": -3}, "hidden_size"),
        ({"input_size": 2.5}, "input_size"),
        ({"forget_bias": "abc"}, "forget_bias"),
        ({"recompute": "no"}, "recompute"),
    ],
)
@pytest.mark.parametrize("variant", ["plain", "gru", "2d-tlstm"])
def test_sizes_are_checked_for_every_variant(variant, arguments, name):
    with pytest.raises(ValueError, match=f"'{name}' must be"):
        make_layer(
            **{"variant": variant, "input_size": 3, "hidden_size": 5, "depth": 1, **arguments}
        )


@dataclasses.dataclass(frozen=True)
class Counted(CellVariant):
    count: int = 0


@pytest.mark.parametrize("again", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_a_variant_in_another_process(again):
    variant = CellVariant(GRU, {"clip_norm": 0.0})
    same = again(variant)
    assert same == variant
    assert hash(same) == hash(variant)
    assert again(Counted(GRU, count=5)).count == 5
    assert again(VARIANTS).keys() == VARIANTS.keys()
    with pytest.raises(TypeError):
        same.settings["clip_norm"] = 1.0

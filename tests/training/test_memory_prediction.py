"""The predicted memory of a training step beside what MLX counts."""

from __future__ import annotations

import dataclasses
import gc
import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tiny_tasks import write_images

from mlx_tlstm import TLSTM, TRNN, VARIANTS, training
from mlx_tlstm.kernels import tuning
from mlx_tlstm.kernels.tiles import CANDIDATES
from mlx_tlstm.rivals import RIVALS
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training import memory_prediction as memory

MIB = 1 << 20
#: The docstring of ``predict`` promises no more than that above what is measured, and never less.
FACTOR = 1.6

# Single sequences of the tasks are short, so that sizes make up for it: 20 to 140 MiB a step.
CASES = [
    {"variant": "2d-tlstm+cn", "depth": 4, "length": 20, "batch_size": 40},
    {"variant": "2d-tlstm-m", "depth": 6, "length": 20, "batch_size": 40},
    {"variant": "2d-tlstm-f", "depth": 6, "length": 20, "batch_size": 40},
    {"variant": "2d-tlstm+ln", "depth": 4, "length": 20, "batch_size": 40},
    {"variant": "2d-tlstm+cn", "depth": 1, "length": 40, "batch_size": 60},
    {"variant": "3d-tlstm+ln", "depth": 4, "hidden_size": 60, "length": 10, "batch_size": 20},
    {"variant": "3d-tlstm+cn", "depth": 2, "hidden_size": 300, "length": 3, "batch_size": 5},
    {"variant": "3d-tlstm", "depth": 4, "length": 12, "batch_size": 15, "kernel_size": 2},
    {"variant": "2d-trnn", "depth": 10, "length": 10, "batch_size": 60},
    {"variant": "slstm", "depth": 6, "length": 20, "batch_size": 40},
]


def _config(task="memorization", **changes):
    settings = {"hidden_size": 100, "samples": 10_000, "eval_every": 10_000, **changes}
    return TASKS[task].quick().replace(**settings)


def _measure(config):
    """Measured bytes at the peak of steps, and the prediction.

    The peak depends on how far MLX allocates ahead of what it computes, which other work on the
    machine keeps it from in some steps: up to ten are taken until one comes near.
    """
    gc.collect()
    mx.synchronize()  # what the step before still holds would count as in use
    before = mx.get_active_memory()
    trainer = training.Trainer(config)
    predicted = memory.predict(memory.StepSizes.of(config, trainer.task, trainer.model))
    peaks = []
    while len(peaks) < 2 or (FACTOR * max(peaks) < predicted and len(peaks) < 10):
        mx.synchronize()
        mx.reset_peak_memory()
        trainer.train_step()
        peaks.append(mx.get_peak_memory() - before)
    return max(peaks), predicted


def check_prediction(task="memorization", *, factor=FACTOR, **settings):
    """Train a little with these settings: the measured bytes, which the prediction has to meet."""
    measured, predicted = _measure(_config(task, **settings))
    assert measured > 10 * MIB, "too small to tell"
    assert measured <= predicted <= factor * measured, (measured / MIB, predicted / MIB)
    return measured


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['variant']}-{case['depth']}")
def test_variants(case, recompute):
    check_prediction(**case, recompute=recompute)


def test_weight_gradients_that_are_formed_step_by_step():
    """More than 2,048 locations in a batch: no step's windows are kept from the forward pass."""
    sizes = {"depth": 7, "hidden_size": 40, "length": 20, "batch_size": 42}
    check_prediction(variant="3d-tlstm+cn", **sizes)


@pytest.mark.parametrize(
    ("name", "recompute"), [*((name, False) for name in RIVALS), ("stacked-lstm", True)]
)
def test_rivals(name, recompute):
    """Never too low, and within thrice of the little that a step of a single layer needs."""
    sizes = {"hidden_size": 150, "length": 40, "batch_size": 60, "depth": 3}
    own = RIVALS[name].settings
    check_prediction(factor=3.0, **{**sizes, "variant": name, "recompute": recompute, **own})


@pytest.mark.parametrize("name", ["slstm", *RIVALS])
def test_more_weights_than_activations(name):
    """What counts is how many gradients of the weights are there at once, which varies."""
    sizes = {"hidden_size": 300, "length": 20, "batch_size": 1, "depth": 3}
    own = VARIANTS[name].settings
    if name == "irnn":
        sizes["hidden_size"] = 600
    check_prediction(factor=5.0, **{**sizes, "variant": name, **own})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_half_precision(dtype, recompute):
    # Half-precision products are slow on a CPU.
    case = {"variant": "2d-tlstm", "depth": 6, "hidden_size": 50, "length": 12, "batch_size": 60}
    check_prediction(**case, dtype=dtype, recompute=recompute)


def test_other_tasks(tmp_path):
    """Addition; MNIST, with one loss a sequence; Wikipedia, whose state is carried."""
    check_prediction("addition", depth=4, length=10, batch_size=40)
    images = str(write_images(tmp_path))
    check_prediction("mnist", depth=3, length=28, batch_size=40, data=images, epochs=None)
    text = np.random.default_rng(0).integers(1, 201, 60_000, dtype=np.uint8)
    (tmp_path / "text").write_bytes(text.tobytes())
    data = str(tmp_path / "text")
    check_prediction("wikipedia", depth=3, length=30, batch_size=40, data=data, epochs=None)


def test_accumulation():
    case = {"variant": "2d-tlstm+cn", "depth": 4, "length": 20, "batch_size": 120}
    check_prediction(**case, accumulate=3)
    assert _predict(_config(**case, accumulate=3)) < 0.5 * _predict(_config(**case))


@pytest.fixture
def short_turns(monkeypatch):
    """Weight gradients in turns of few steps, as at the paper's sizes."""
    monkeypatch.setattr("mlx_tlstm.ops.convolution._WEIGHT_GRADIENT_ELEMENTS", 1 << 21)


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize(
    ("variant", "depth", "recompute"),
    [("3d-tlstm+cn", 4, True), ("2d-tlstm", 10, False), ("3d-trnn", 4, False), ("slstm", 10, True)],
)
def test_turns_of_the_weight_gradient(variant, depth, recompute):
    check_prediction(variant=variant, depth=depth, length=20, batch_size=15, recompute=recompute)


@pytest.mark.parametrize(("batch_size", "hidden_size"), [(1, 100), (2, 800), (15, 700)])
def test_the_matrix_of_a_weight_gradient_is_bounded(batch_size, hidden_size):
    cell = TLSTM(2, 3, (10, 10), 3).cell
    steps = cell.transition.backend.weight_gradient_steps(batch_size, hidden_size)
    one = 4 * batch_size * 10**2 * 3**2 * hidden_size
    assert steps == 1 or steps * one <= 64 * MIB


def _sizes(config):
    """From a model that is never evaluated."""
    task = TASKS[config.task](config)
    return memory.StepSizes.of(config, task, training.build_model(config, task))


def _predict(config):
    return memory.predict(_sizes(config))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_halves_the_outputs(dtype):
    """Which are most of what a shallow network without memory keeps; logits stay in float32."""
    config = _config(variant="2d-trnn", depth=1, length=20, batch_size=60)
    assert _predict(config.replace(dtype=dtype)) < 0.7 * _predict(config)


def test_prediction_evaluates_nothing():
    gc.collect()
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    predicted = _predict(TASKS["memorization"].paper())
    assert mx.get_peak_memory() - before < MIB < predicted


@pytest.mark.standin(mode="fast", check=False)
@pytest.mark.parametrize("norm", [None, "channel", "layer"])
def test_kernels_keep_what_their_table_says(norm, kernel_calls):
    """``metal/README.md``: states of 8 bytes, activations, and statistics of the normalisation."""
    P, M, taps = 20, 7, 9
    cell = TLSTM(2, M, (4, 5), 3, norm=norm).cell
    statistics = {None: 0, "channel": P, "layer": 1}[norm]
    kept = [8 * P * M, 4 * P * (4 * M + taps) + 8 * statistics, 8 * statistics]
    assert memory._step_bytes(cell, cell.active_transition(3)) == kept
    trnn = TRNN(2, M, (4, 5), 3).cell
    assert memory._step_bytes(trnn, trnn.active_transition(3)) == [4 * P * M, 0, 0]


@pytest.mark.standin(mode="fast", check=False)
def test_windows_count_where_mlx_multiplies_between_kernels(kernel_calls):
    config = _config(variant="3d-tlstm+cn", depth=4, length=20, batch_size=15)
    sizes = _sizes(config)
    with tuning.forced(CANDIDATES[0]):
        tiles = memory.predict(sizes)
    with tuning.forced(None):
        products = memory.predict(sizes)
    windows = 4 * 15 * 4**2 * 9 * 100  # bytes of one step's
    assert products - tiles > 8 * windows


@pytest.mark.parametrize("variant", ["3d-tlstm+cn", "3d-trnn"])
def test_the_equations_need_no_more_than_predicted(variant, monkeypatch):
    monkeypatch.setenv("MLX_TLSTM_BACKEND", "reference")
    measured, predicted = _measure(_config(variant=variant, depth=4, length=20, batch_size=15))
    assert measured <= predicted


def test_limits(monkeypatch):
    monkeypatch.setattr(memory, "_OWN_GROUPS", Path("nowhere"))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.limit() == physical
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 7})
    assert memory.limit() == 7
    monkeypatch.setattr(mx, "device_info", lambda: {"total_memory": 9})
    assert memory.limit() == 9
    of_a_virtual_mac = {"max_recommended_working_set_size": 0, "memory_size": 11}
    monkeypatch.setattr(mx, "device_info", lambda: of_a_virtual_mac)
    assert memory.limit() == 11
    assert memory.device_name() == "the GPU"


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "7000\n"}, 7000),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "9000\n"}, 9000),
        ("0::/a:b\n", {"a:b/memory.max": "5000\n", "memory.max": "9000\n"}, 5000),
        ("0::/../x\n", {"memory.max": "5000\n"}, 5000),
        ("4:memory:/docker/x\n1:cpu:/\n", {"memory/memory.limit_in_bytes": "8000\n"}, 8000),
        ("4:memory:/\n0::/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("4:pids:/\n", {"pids/memory.limit_in_bytes": "8000\n", "memory.max": "7\n"}, None),
    ],
)
def test_a_containers_limit(own, limits, expected, tmp_path, monkeypatch):
    (tmp_path / "own").write_text(own)
    for name, text in limits.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.limit() == (expected or physical)


def _changes(message):
    """The changes that an error names, as changes of a configuration."""
    named = message.partition("one of these fits: ")[2].split(", ")
    return {
        name: int(value) if value else True
        for name, _, value in (change.partition(" ") for change in named)
    }


def test_too_large_a_step_is_refused_before_any_work(tmp_path, monkeypatch):
    config = _config(variant="2d-tlstm+cn", depth=4, length=20, batch_size=60, dtype="bfloat16")
    needed = _predict(config)
    allowed = int(0.9 * needed)
    monkeypatch.setattr(memory, "limit", lambda: allowed)
    gc.collect()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    with pytest.raises(ValueError, match=r"\[Trainer\] a training step must fit into") as caught:
        training.prepare(config, tmp_path / "run")
    assert mx.get_peak_memory() - before < MIB
    assert not (tmp_path / "run").exists()
    changes = _changes(str(caught.value))
    assert set(changes) == {"batch_size", "length", "accumulate", "recompute"}
    for name, value in changes.items():
        assert _predict(config.replace(**{name: value})) <= allowed, name
    # The next larger ones do not fit.
    for name in ("batch_size", "length"):
        assert _predict(config.replace(**{name: changes[name] + 1})) > allowed, name
    trainer, _ = training.prepare(config.replace(recompute=True), tmp_path / "run")
    assert trainer.step == 0


def test_hopeless_sizes_say_so(monkeypatch):
    monkeypatch.setattr(memory, "limit", lambda: 1000)
    with pytest.raises(ValueError, match=r"no batch_size, length, .* alone makes it fit"):
        training.Trainer(_config(length=5))


@pytest.mark.parametrize("variant", ["2d-tlstm+cn", "2d-trnn"])
def test_no_constants_are_made_for_a_depth_that_cannot_fit(variant, monkeypatch):
    """Those of a 2D tLSTM of such a depth are arrays of 10 GiB and more."""
    monkeypatch.setattr(memory, "_step_bytes", None)
    monkeypatch.setattr(memory, "limit", lambda: 8 << 30)
    config = _config(variant=variant, depth=10_000, hidden_size=128, length=1)
    with pytest.raises(ValueError, match=r"to need .* GiB; no batch_size, .* lower several, or"):
        training.Trainer(config)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("variant", "depth"), [("2d-tlstm", 400), ("2d-trnn", 400), ("3d-trnn", 30), ("slstm", 30)]
)
def test_the_least_is_part_of_any_prediction(variant, depth, recompute):
    """Also where nearly all steps are those on ever smaller corners."""
    settings = {"batch_size": 100, "hidden_size": 64, "length": 1, "recompute": recompute}
    sizes = _sizes(_config(variant=variant, depth=depth, **settings))
    assert 0 < memory._least(sizes) < memory.predict(sizes)


def test_workers_share_the_batch():
    config = _config(length=20, batch_size=60, accumulate=3)
    task = TASKS[config.task](config)
    model = training.build_model(config, task)
    alone, two = (memory.StepSizes.of(config, task, model, workers) for workers in (1, 2))
    assert (alone.rows, two.rows) == (20, 10)
    assert dataclasses.replace(two, rows=20) == alone


def test_a_step_that_fits_two_workers(monkeypatch):
    """And does not fit one; the advice counts the sequences of both."""
    monkeypatch.setattr(mx.distributed, "all_sum", lambda array: array)
    config, workers = _config(length=20, batch_size=60, accumulate=3), training.Workers(0, 2)
    needed = memory.predict(dataclasses.replace(_sizes(config), rows=10))
    monkeypatch.setattr(memory, "limit", lambda: needed)
    training.Trainer(config, workers)
    with pytest.raises(ValueError, match="must fit into"):
        training.Trainer(config)
    monkeypatch.setattr(memory, "limit", lambda: needed - 1)
    with pytest.raises(ValueError, match="must fit into") as caught:
        training.Trainer(config, workers)
    assert _changes(str(caught.value))["batch_size"] == 2 * 3 * 9


@pytest.mark.parametrize(("length", "shorter"), [(28, [16, 14, 8, 7, 4, 2, 1]), (1, [])])
def test_lengths_of_mnist_divide_its_pixels(length, shorter):
    assert list(TASKS["mnist"].shorter_lengths(length)) == shorter


@pytest.mark.parametrize(
    ("size", "words"),
    [(1, "1 MiB"), (MIB + 1, "2 MiB"), (3 << 29, "1.5 GiB"), (5 << 40, "5,120.0 GiB")],
)
def test_sizes_in_words(size, words):
    assert memory.describe(size) == words


def test_header_names_prediction_and_limit(capsys, tmp_path):
    config = _config(length=2, batch_size=5, samples=5, hidden_size=8)
    training.fit(config, tmp_path / "run", [training.Progress(bar=False)])
    line = capsys.readouterr().out.splitlines()[1]
    limit, needed = memory.describe(memory.limit()), memory.describe(_predict(config))
    assert line == f"memory: about {needed} at the peak of a step; the CPU has {limit}"

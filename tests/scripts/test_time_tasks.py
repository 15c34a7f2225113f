"""The script that times the paper's tasks, and the bare products that it is held against."""

from __future__ import annotations

import collections
import csv
import dataclasses
import functools
import json
import math
import os

import mlx.core as mx
import numpy as np
import pytest
import time_tasks
from benchmarking import products
from click.testing import CliRunner
from experiments import pictures, task_passes, task_times
from experiments.paper import PAPER_TASKS
from experiments.widths import parameter_count
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm import VARIANTS, Recurrent, make_layer
from mlx_tlstm.checking.timing import Timing, machine, measure
from mlx_tlstm.ops import PlainBackend

B, T, R, M, S = 2, 5, 3, 4, 7


def as_tuples(found):
    return sorted((p.m, p.k, p.n, p.times, p.layout) for p in found)


def test_products_of_another_cell():
    """Of an LSTM: forward, to the rows before, and to the weight, in each of T steps."""
    found = as_tuples(products.layer_products(make_layer("lstm", R, M, 1), B, T))
    gates, rows = 4 * M, R + M
    expected = [(B, rows, gates, T), (B, gates, rows, T), (gates, B, rows, T)]
    turned = [(n, k, m, times) for m, k, n, times in expected]
    assert len(found) == 3
    for one, other in zip(expected, turned, strict=True):
        assert {(*one, "nn"), (*other, "nn")} & set(found)
    layer = make_layer("irnn", R, M, 1)
    counts = sum(one.operations for one in products.layer_products(layer, B, T))
    # The gradient of an input is not asked for.
    assert counts == 2 * B * T * (2 * M * R + 3 * M * M)


def test_a_title_lists_few_sizes():
    rows = [{"hidden_size": M, "batch_size": 4, "length": 42} for M in (36, 50, 258, 144, 122)]
    assert task_times.shared_sizes(rows) == "M=36 to 258, B=4, T=42"
    assert task_times.shared_sizes(rows[:3]) == "M=258/50/36, B=4, T=42"


def test_points_of_others_networks():
    """As many parameters as ours at each depth; a network without a depth has one point."""
    variants = ("grid-lstm", "lstm", "3d-tlstm+cn")
    grid, lstm, ours = task_passes.points_of("mnist", True, variants)
    assert [point.depth for point in grid] == [point.depth for point in ours] == [1, 3, 5]
    assert [point.depth for point in lstm] == [1]
    for points in (grid, lstm):
        for point, other in zip(points, ours, strict=False):
            counts = [
                parameter_count(one.variant, (1, 10), one.hidden_size, one.depth)
                for one in (point, other)
            ]
            assert 0.95 * counts[1] < counts[0] <= counts[1]
    assert "lstm" not in task_times.cost_of_depth("mnist", [{"variant": "lstm", "depth": 1}])


# The bare products ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "depth", "expected"),
    [
        # 2x2 locations: N = 8 rows, 9·4 inputs, 16 gates and 9 kernel channels, 5 + 1 steps, the
        # last of them on the whole tensor too.
        (
            "3d-tlstm+cn",
            2,
            [(8, 36, 25, 6, "nt"), (8, 25, 36, 6, "nn"), (25, 48, 36, 1, "tn")],
        ),
        # K = 2 on one axis of three locations, 5 + 2 steps, the last of them on two locations.
        (
            "2d-tlstm-f",
            3,
            [
                (6, 8, 18, 6, "nt"),
                (6, 18, 8, 6, "nn"),
                (18, 36, 8, 1, "tn"),
                (4, 8, 18, 1, "nt"),
                (4, 18, 8, 1, "nn"),
                (18, 4, 8, 1, "tn"),
            ],
        ),
        ("2d-tlstm-m", 1, [(2, 12, 16, 5, "nt"), (2, 16, 12, 5, "nn"), (16, 10, 12, 1, "tn")]),
        ("2d-trnn", 1, [(2, 12, 4, 5, "nt"), (2, 4, 12, 5, "nn"), (4, 10, 12, 1, "tn")]),
        # In each of 5 steps three layers, one after the other, and the pasts of all at once.
        (
            "slstm",
            3,
            [
                (2, 4, 16, 15, "nt"),
                (2, 16, 4, 15, "nn"),
                (6, 4, 16, 5, "nt"),
                (6, 16, 4, 5, "nn"),
                (16, 30, 8, 1, "tn"),
            ],
        ),
    ],
)
def test_products_of_layers(variant, depth, expected):
    layer = make_layer(variant, R, M, depth)
    assert as_tuples(products.layer_products(layer, B, T)) == sorted(expected)


@pytest.mark.parametrize("variant", ["2d-tlstm", "3d-tlstm+cn", "3d-tlstm+ln", "2d-trnn"])
@pytest.mark.parametrize("limit", ["_WEIGHT_GRADIENT_ELEMENTS", "_WEIGHT_GRADIENT_ROWS"])
def test_products_are_those_that_a_layer_takes(monkeypatch, variant, limit):
    """Of as many rows, as often, and of as many steps at once, with little room for these."""
    layer = make_layer(variant, R, M, 4)
    taken = []

    def recorded(name, layout, rows_of):
        method = getattr(PlainBackend, name)

        def call(self, *arguments, **more):
            taken.append((rows_of(arguments), layout))
            return method(self, *arguments, **more)

        monkeypatch.setattr(PlainBackend, name, call)

    recorded("convolution", "nt", lambda given: given[0].size // M)
    recorded("convolution_gradient", "nn", lambda given: given[0].size // given[0].shape[-1])
    recorded("weight_gradient", "tn", lambda given: sum(H.size for H in given[0]) // M)
    of_two_steps = 2 * B * layer.cell.geometry.locations
    of_two_steps *= layer.cell.weight[0].size if limit.endswith("ELEMENTS") else 1
    monkeypatch.setattr(f"mlx_tlstm.ops.convolution.{limit}", of_two_steps + 1)
    x = mx.random.normal((B, T, R))
    mx.grad(lambda x: layer(x)[0].sum())(x)
    found = {}
    for product in products.layer_products(layer, B, T):
        key = (product.k if product.layout == "tn" else product.m, product.layout)
        found[key] = found.get(key, 0) + product.times
    assert found == collections.Counter(taken)


def test_a_cell_that_cannot_be_read_has_no_floor():
    """MLX writes out no gradient that reads a custom function's output; that is no floor of 0."""

    class Cell(nn.Module):
        input_size = hidden_size = M

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(M, M)

        def initial_state(self, batch_size):
            return mx.zeros((batch_size, M))

        def __call__(self, x, state):
            squashed = mx.custom_function(mx.tanh)
            squashed.vjp(lambda given, d, output: d * (1 - output * output))
            state = squashed(self.linear(x + state))
            return state, state

    with pytest.raises(ValueError, match="'cell' must be one whose step MLX can write out"):
        products.layer_products(Recurrent(Cell()), B, T)


def test_operations_of_a_pass():
    """The sum by hand: each weight takes part in three products, the projection's in two."""
    point = task_passes.Point("mnist", "2d-tlstm", 2, M, B, T, 1, 10)
    rows, steps = 2 * B, T + 1
    layer = 3 * 2 * rows * steps * (3 * M) * (4 * M + 3)
    projection = 2 * 2 * B * T * 1 * M
    readout = 3 * 2 * B * 1 * M * 10  # MNIST's loss is at the last step
    total = sum(product.operations for product in task_passes.pass_products(point))
    assert total == layer + projection + readout
    everywhere = dataclasses.replace(point, task="memorization")
    total = sum(product.operations for product in task_passes.pass_products(everywhere))
    assert total == layer + projection + T * readout


def test_bare_products_take_every_product(monkeypatch):
    taken = []
    monkeypatch.setattr(mx, "async_eval", lambda arrays: taken.extend(a.shape for a in arrays))
    products.bare_products(
        [products.Product(2, 3, 4, 17, "nt"), products.Product(5, 6, 7, 1, "tn")]
    )()
    assert taken == [(2, 4)] * 17 + [(5, 7)]


# The passes -------------------------------------------------------------------------------------


def test_points_are_the_papers():
    sizes = {
        task: {
            (p.variant, p.depth, p.hidden_size, p.batch_size, p.length, p.input_size, p.output_size)
            for points in task_passes.points_of(task, quick=False)
            for p in points
        }
        for task in PAPER_TASKS
    }
    assert {task: len(found) for task, found in sizes.items()} == {
        "memorization": 28,
        "addition": 28,
        "wikipedia": 28,
        "mnist": 21,
        "pmnist": 21,
    }
    assert ("slstm", 10, 100, 15, 42, 65, 65) in sizes["memorization"]
    assert ("3d-tlstm", 7, 400, 15, 49, 11, 11) in sizes["addition"]
    for variant, hidden_size in (("slstm", 1120), ("2d-tlstm-m", 901), ("3d-tlstm+ln", 522)):
        assert (variant, 3, hidden_size, 100, 50, 205, 205) in sizes["wikipedia"]
    assert ("2d-tlstm-f", 5, 100, 50, 784, 1, 10) in sizes["mnist"]
    assert sizes["mnist"] == sizes["pmnist"]


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_quick_points_are_smaller(task):
    paper, quick = (task_passes.points_of(task, quick) for quick in (False, True))
    for theirs, ours in zip(paper, quick, strict=True):
        for their, our in zip(theirs, ours, strict=True):
            assert (our.variant, our.depth) == (their.variant, their.depth)
            assert our.hidden_size < their.hidden_size
            assert our.batch_size < their.batch_size
            assert 4 * our.depth <= our.length <= their.length  # the flush stays a small part
            assert (our.input_size, our.output_size) == (their.input_size, their.output_size)


@pytest.mark.parametrize("task", ["memorization", "pmnist"])
def test_a_pass_is_a_training_steps(task):
    """Loss and gradients are those of the model's logits at the task's loss positions."""
    point = task_passes.Point(task, "3d-tlstm+cn", 2, M, B, T, R, S)
    one = task_passes.TaskPass(point)
    loss, gradients = one.run()
    logits = np.array(one.model(one.x)[0])
    if task == "pmnist":
        logits = logits[:, -1:]
    logits = logits.astype(np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(logits, np.array(one.targets)[..., None], axis=-1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    names = {name for name, _ in tree_flatten(one.model.trainable_parameters())}
    assert {name for name, _ in tree_flatten(gradients)} == names
    for name, gradient in tree_flatten(gradients):
        assert mx.isfinite(gradient).all().item(), name
        assert mx.any(gradient != 0).item(), name


# Times ------------------------------------------------------------------------------------------


def points_at(task="memorization", variant="2d-tlstm", depths=(1, 2)):
    return [task_passes.Point(task, variant, depth, M, B, T, R, S) for depth in depths]


def test_rows_are_in_the_papers_unit(monkeypatch):
    """A pass of B=2 sequences of T=5 steps counts as ten, the flush's steps as none."""
    given = {
        "1": Timing((10, 20, 30), 1000),
        "1 products": Timing((5, 5, 5), 0),
        "2": Timing((30, 40, 60), 3000),
        "2 products": Timing((10, 5, 5), 0),
    }
    asked = {}

    def measured(candidates, **options):
        asked.update(options, names=list(candidates))
        return given

    monkeypatch.setattr(task_times, "measure", measured)
    points = points_at()
    first, second = task_times.measure_depths(points, rounds=3, warmup=1)
    assert asked == {"names": list(given), "rounds": 3, "warmup": 1}
    assert first == dataclasses.asdict(points[0]) | {
        "median": 2.0,
        "quartiles": [1.5, 2.5],
        "products": 0.5,
        "to_products": 4.0,
        "to_first": 1.0,
        "peak_bytes": 1000,
        "milliseconds": [1.0, 2.0, 3.0],
    }
    assert second["milliseconds"] == [3.0, 4.0, 6.0]
    assert second["to_first"] == 2.0
    assert second["to_products"] == 8.0


def test_depths_and_products_are_really_measured():
    rows = task_times.measure_depths(points_at(variant="slstm"), rounds=2, warmup=0)
    for row, depth in zip(rows, (1, 2), strict=True):
        assert row["depth"] == depth
        assert len(row["milliseconds"]) == 2
        assert min(row["milliseconds"]) > 0
        assert row["products"] > 0
        assert row["peak_bytes"] > 0


@pytest.fixture
def run(monkeypatch):
    """The command over four tiny groups; returns its result and the groups it measured."""
    measured = []
    measure_depths = task_times.measure_depths

    def counted(points, rounds, warmup):
        measured.append((points[0].task, points[0].variant))
        return measure_depths(points, rounds, warmup)

    def tiny(task, quick, variants):
        return [points_at(task, variant) for variant in ("slstm", "3d-tlstm")]

    monkeypatch.setattr(task_times, "measure_depths", counted)
    monkeypatch.setattr(time_tasks, "points_of", tiny)
    monkeypatch.setattr(time_tasks, "WARMUP", 0)
    monkeypatch.setattr(task_times, "measure", functools.partial(measure, pause=0.0))

    def invoke(*arguments, pictures=False):
        if not pictures:
            monkeypatch.setattr(time_tasks, "save_figure", lambda figure, stem: [])
        measured.clear()
        result = CliRunner().invoke(
            time_tasks.main, ["memorization", "mnist", *map(str, arguments)]
        )
        return result, list(measured)

    return invoke


def test_notes_on_what_the_figures_are_worth(run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9.0, 9.0))
    quiet, _ = run("--rounds", 1, "--out", tmp_path)
    assert "Other work is running" not in quiet.output
    assert time_tasks.QUICK_NOTE not in quiet.output
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 0.0, 0.0))
    busy, measured = run("--rounds", 1, "--out", tmp_path)
    assert "Other work is running here" in busy.output
    assert measured == []  # the load is no setting
    assert time_tasks.QUICK_NOTE in run("--rounds", 1, "--quick", "--out", tmp_path)[0].output


FOUR = [(task, v) for task in ("memorization", "mnist") for v in ("slstm", "3d-tlstm")]


def test_files_and_output(run, tmp_path):
    result, measured = run("--rounds", 2, "--out", tmp_path, pictures=True)
    assert result.exit_code == 0, result.output
    assert measured == FOUR
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (tmp_path / "times.svg").read_text()
    saved = json.loads((tmp_path / "times.json").read_text())
    facts, rows = saved["facts"], saved["rows"]
    assert facts.items() >= dataclasses.asdict(machine()).items()
    assert (facts["rounds"], facts["warmup"], facts["quick"]) == (2, 0, False)
    assert facts["command"].startswith("python scripts/time_tasks.py")
    assert [(r["task"], r["variant"], r["depth"]) for r in rows] == [
        (task, variant, depth) for task, variant in FOUR for depth in (1, 2)
    ]
    table = list(csv.DictReader((tmp_path / "times.csv").read_text().splitlines()))
    for line, row in zip(table, rows, strict=True):
        assert float(line["median"]) == row["median"]
        assert float(line["lower_quartile"]) == row["quartiles"][0]
        assert line["rounds"] == "2"
        assert "milliseconds" not in line
    for row in rows:
        assert f"{row['median']:.4f}" in result.output
    assert "memorization: milliseconds per timestep per example, M=4, B=2, T=5" in result.output
    *_, slstm, tensor = (r["to_first"] for r in rows if r["task"] == "mnist" and r["depth"] == 2)
    words = f"mnist: slstm: L=2 costs {slstm:.1f} times L=1; 3d-tlstm {tensor:.1f}"
    assert words in result.output


def test_a_second_command_measures_nothing(run, tmp_path):
    first, _ = run("--rounds", 1, "--out", tmp_path)
    rows = json.loads((tmp_path / "times.json").read_text())["rows"]
    (tmp_path / "times.json").unlink()
    second, measured = run("--rounds", 1, "--out", tmp_path)
    assert measured == []
    assert json.loads((tmp_path / "times.json").read_text())["rows"] == rows
    assert second.exit_code == first.exit_code == 0
    assert "4 of 4" in first.stderr
    assert second.stderr == ""


def test_a_stopped_command_goes_on(run, tmp_path, monkeypatch):
    whole = task_times.measure_depths
    done = []

    def stopped_in_the_third(points, rounds, warmup):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(points)
        return whole(points, rounds, warmup)

    with monkeypatch.context() as patch:
        patch.setattr(task_times, "measure_depths", stopped_in_the_third)
        result, _ = run("--rounds", 1, "--out", tmp_path)
    assert result.exit_code == 130
    assert "what was measured is kept, and the same command goes on" in result.stderr
    assert not (tmp_path / "times.json").exists()
    kept = (tmp_path / "times.jsonl").read_text()
    result, measured = run("--rounds", 1, "--out", tmp_path)
    assert result.exit_code == 0
    assert measured == FOUR[2:]
    assert (tmp_path / "times.jsonl").read_text().startswith(kept)


@pytest.mark.parametrize("changed", ["rounds", "commit"])
def test_rows_of_other_settings_count_as_none(run, tmp_path, monkeypatch, changed):
    run("--rounds", 1, "--out", tmp_path)
    kept = (tmp_path / "times.jsonl").read_text()
    if changed == "commit":
        here = dataclasses.replace(machine(), commit="0123456789ab")
        monkeypatch.setattr(time_tasks, "machine", lambda: here)
    _, measured = run("--rounds", 2 if changed == "rounds" else 1, "--out", tmp_path)
    assert measured == FOUR
    assert (tmp_path / "times.jsonl").read_text().startswith(kept)
    assert run("--rounds", 2 if changed == "rounds" else 1, "--out", tmp_path)[1] == []


def test_other_sizes_are_measured(tmp_path):
    """A row counts for its sizes only."""
    points = points_at()
    kept = task_times.KeptRows(tmp_path / "times.jsonl", {"commit": "a"})
    assert kept.of(points) is None
    rows = task_times.measure_depths(points, rounds=1, warmup=0)
    kept.add(rows)
    again = task_times.KeptRows(tmp_path / "times.jsonl", {"commit": "a"})
    assert again.of(points) == rows
    assert again.of(points[:1]) == rows[:1]
    larger = [dataclasses.replace(point, hidden_size=M + 1) for point in points]
    assert again.of(larger) is None
    assert again.of([points[0], larger[1]]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "must hold JSON but Expecting value"),
        ('{"task": "mnist"}\n', "must be rows with batch_size, depth"),
    ],
)
def test_a_file_of_something_else_is_left_alone(run, tmp_path, text, message):
    path = tmp_path / "times.jsonl"
    path.write_text(text)
    result, measured = run("--rounds", 1, "--out", tmp_path)
    assert result.exit_code == 2
    assert message in result.output
    assert measured == []
    assert path.read_text() == text


def test_sizes_that_do_not_fit_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(task_times.memory_prediction, "limit", lambda: 1 << 14)
    result, measured = run("--out", tmp_path)
    assert result.exit_code == 2
    assert "3d-tlstm, L=2 needs about 1 MiB but the CPU has 1 MiB" in result.output
    assert "--quick takes smaller sizes" in result.output
    assert measured == []
    assert not list(tmp_path.iterdir())


def test_the_prediction_covers_a_pass():
    """A paper-sized pass is not tried here; a middling one stays below what is predicted."""
    point = task_passes.Point("memorization", "3d-tlstm+cn", 3, 24, 8, 20, 65, 65)
    one = task_passes.TaskPass(point)
    one.run()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    one.run()
    assert 0 < mx.get_peak_memory() - before < task_passes.predicted_bytes(point)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["addition", "sorting"], "'sorting' is not one of"), (["--rounds", "0"], "0 is not in")],
)
def test_refusals(arguments, message):
    result = CliRunner().invoke(time_tasks.main, arguments)
    assert result.exit_code == 2
    assert message in result.output


# Panels -----------------------------------------------------------------------------------------


def made_rows(task, variants=("slstm", "2d-tlstm"), **sizes):
    """Rows whose time is 1 at the first depth and the depth at others."""
    rows = []
    for points in task_passes.points_of(task, quick=False):
        for point in points:
            if point.variant in variants:
                milliseconds = [point.depth * scale for scale in (1.0, 2.0, 4.0)]
                found = {
                    "median": milliseconds[1],
                    "quartiles": [1.5 * point.depth, 3.0 * point.depth],
                    "products": 0.5,
                    "to_products": 4.0,
                    "to_first": float(point.depth),
                    "peak_bytes": 1 << 20,
                    "milliseconds": milliseconds,
                }
                rows.append(dataclasses.asdict(point) | found | sizes)
    return rows


def test_panels():
    rows = made_rows("wikipedia", VARIANTS) + made_rows("mnist", batch_size=4)
    facts = {"device": "cpu (some chip)", "mlx": "0.1", "commit": "abc"}
    figure = pictures.draw_times(rows, facts)
    text, images = figure.axes
    assert text.get_title() == "wikipedia, M=1120/901/522, B=100, T=50"
    assert images.get_title() == (
        "mnist, M=100, B=4, T=784\nreduced; the paper's: M=100, B=50, T=784"
    )
    assert len(text.containers) == 7
    line, *_ = images.containers[0]
    assert [list(map(float, values)) for values in line.get_data()] == [[1, 3, 5], [2, 6, 10]]
    legend = [entry.get_text() for entry in images.get_legend().get_texts()]
    assert legend == ["slstm  ×5.0", "2d-tlstm  ×5.0"]
    assert "cpu (some chip)" in figure.get_suptitle()
    [one] = pictures.draw_times(made_rows("wikipedia", ["2d-tlstm"]), facts).axes
    assert one.get_title() == "wikipedia, M=901, B=100, T=50"


def test_words():
    rows = made_rows("mnist")
    words = task_times.cost_of_depth("mnist", rows)
    assert words == "mnist: slstm: L=5 costs 5.0 times L=1; 2d-tlstm 5.0"
    table = task_times.task_table("mnist", rows)
    cells = table.rows[2]
    assert (cells["variant"], cells["L"], cells["to L=1"]) == ("slstm", "5", "5.00")
    assert math.isclose(float(cells["ms"]), 10)

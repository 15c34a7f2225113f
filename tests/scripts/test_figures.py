"""The script that draws figures from run folders, as a user starts it."""

from __future__ import annotations

import dataclasses
import json

import figures
import pytest
from benchmarking.task_passes import Point
from click.testing import CliRunner
from experiments.alike import find_runs
from tiny_tasks import write_run

from mlx_tlstm.models.trained import WEIGHTS
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.visualize import variant_style


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "runs"
    path.mkdir()
    return path


def make_run(folder, task, variant, depth, values, seed=0, name=None, **changes):
    """A run with an evaluation a value."""
    changes |= {"variant": variant, "depth": depth, "seed": seed}
    if task == "wikipedia":
        changes |= {"data": "text.xml"}
    name = name or f"{task}-{variant}-L{depth}-s{seed}"
    config = TASKS[task].quick().replace(**changes)
    return write_run(folder / name, config, values, split=TASKS[task].monitor)


@pytest.fixture
def invoke(tmp_path):
    def call(*arguments):
        command = [*map(str, arguments), "--out", str(tmp_path / "out" / "figure")]
        return CliRunner().invoke(figures.main, command)

    return call


@pytest.fixture
def drawn(monkeypatch, invoke):
    """The figure that a command saves, and its messages."""

    def call(*arguments):
        saved = []
        monkeypatch.setattr(figures, "save_figure", lambda figure, stem: saved.append(figure) or [])
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
        return saved[0], result.stderr

    return call


def points(axes):
    """By the legend's label: depths and medians."""
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    lines = [container[0] for container in axes.containers]
    return {
        label: (line.get_xdata().astype(float).tolist(), line.get_ydata().astype(float).tolist())
        for label, line in zip(labels, lines, strict=True)
    }


def test_a_figure_of_two_tasks(folder, drawn):
    for depth in (1, 4):
        make_run(folder, "memorization", "slstm", depth, (0.1, depth / 10))
        make_run(folder, "memorization", "3d-tlstm", depth, (0.5, 0.2))
    make_run(folder, "addition", "2d-tlstm", 4, (0.25,))
    make_run(folder, "mnist", "2d-tlstm", 1, (0.9,))  # of another figure
    (folder / "figure-4.md").write_text("no run")
    figure, messages = drawn("figure-4", folder)
    addition, memorization = figure.axes
    assert points(memorization) == {"slstm": ([1, 4], [10, 40]), "3d-tlstm": ([1, 4], [50, 50])}
    assert points(addition) == {"2d-tlstm": ([4], [25])}
    assert memorization.get_ylabel() == "best test accuracy (%)"
    assert memorization.get_title() == "memorization, 5 symbols, M=100, 1 seed"
    line = memorization.containers[1][0]
    assert line.get_color() == variant_style("3d-tlstm")["color"]
    assert "5 runs not ended" not in messages  # one task's at a time
    assert "4 runs not ended" in messages


def test_seeds_are_one_point(folder, drawn):
    for seed, value in enumerate((0.2, 0.9, 0.4)):
        make_run(folder, "mnist", "3d-tlstm+cn", 3, (value,), seed)
    figure, _ = drawn("figure-5", folder)
    (axes,) = figure.axes
    assert points(axes) == {"3d-tlstm+cn": ([3], [40])}
    (bars,) = axes.containers[0][2]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([20, 90])
    assert axes.get_ylabel() == "best validation accuracy (%)"
    assert axes.get_title().endswith("3 seeds")


def test_bits_are_best_where_least(folder, drawn):
    make_run(folder, "wikipedia", "3d-tlstm+ln", 2, (3.0, 2.0, 2.5), hidden_size=52)
    make_run(folder, "wikipedia", "slstm", 2, (3.0, 2.8), hidden_size=112)
    figure, _ = drawn("figure-3", folder)
    (axes,) = figure.axes
    assert points(axes) == {"slstm": ([2], [2.8]), "3d-tlstm+ln (not causal)": ([2], [2.0])}
    assert axes.get_ylabel() == "best validation bits per character"
    assert axes.get_title() == "wikipedia, chunks of 50 bytes, M=112, 52, 1 seed"


def test_a_variant_has_one_hidden_size(folder, invoke):
    for depth, hidden_size in ((1, 50), (2, 60)):
        make_run(folder, "wikipedia", "slstm", depth, (3.0,), hidden_size=hidden_size)
    result = invoke("figure-3", folder)
    assert result.exit_code == 2
    assert "of runs with one hidden_size for slstm but got [50, 60]" in result.output


def test_times_stand_beside(folder, drawn, tmp_path):
    point = Point("memorization", "slstm", 1, 4, 2, 5, 3, 7)
    rows = [
        dataclasses.asdict(dataclasses.replace(point, depth=depth))
        | {
            "median": depth,
            "quartiles": [depth, depth],
            "products": 1.0,
            "to_products": 1.0,
            "to_first": depth,
            "peak_bytes": 0,
            "milliseconds": [depth, depth, depth],
        }
        for depth in (1, 4)
    ]
    times = tmp_path / "times.json"
    times.write_text(json.dumps({"facts": {}, "rows": rows}))
    make_run(folder, "memorization", "slstm", 4, (0.1,))
    figure, _ = drawn("figure-4", folder, "--times", times)
    performance, runtime = figure.axes
    assert points(performance) == {"slstm": ([4], [10])}
    assert points(runtime) == {"slstm  ×4.0": ([1, 4], [1, 4])}
    assert runtime.get_title().startswith("memorization, M=4, B=2, T=5")


def test_curves(folder, invoke, drawn):
    make_run(folder, "memorization", "slstm", 4, (0.1, 0.4))
    make_run(folder, "addition", "slstm", 4, (0.2,))
    figure, _ = drawn("curves", folder)
    lines = figure.axes[0].get_lines()
    assert [line.get_xydata().tolist() for line in lines] == [
        [[1000, 20]],
        [[1000, 10], [2000, 40]],
    ]


def test_pictures_are_written(folder, invoke, tmp_path):
    run = make_run(folder, "memorization", "slstm", 4, (0.1, 0.4))
    for arguments in (("figure-4", folder), ("curves", run.path)):
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
        png, svg = (tmp_path / "out" / f"figure.{ending}" for ending in ("png", "svg"))
        assert result.stdout.split() == [str(png), str(svg)]
        assert png.read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in svg.read_text()
        png.unlink()


def test_runs_of_other_settings_are_left_out(folder, drawn):
    make_run(folder, "memorization", "slstm", 1, (0.1,))
    make_run(folder, "memorization", "3d-tlstm", 1, (0.2,))
    make_run(folder, "memorization", "3d-tlstm", 1, (0.9,), name="other", clip_norm=2.0)
    make_run(folder, "memorization", "3d-tlstm", 1, (0.9,), name="longer", samples=10**6)
    make_run(folder, "memorization", "3d-tlstm", 4, (), name="new")
    figure, messages = drawn("figure-4", folder)
    assert points(figure.axes[0]) == {"slstm": ([1], [10]), "3d-tlstm": ([1], [20])}
    assert "2 runs left out, as their settings are others: longer, other" in messages
    assert "1 run left out, as they have no evaluation yet: new" in messages


def test_a_run_counts_once(folder, drawn):
    run = make_run(folder, "memorization", "slstm", 1, (0.1,))
    figure, messages = drawn("figure-4", folder, run.path, folder / ".." / "runs")
    assert "1 run not ended" in messages
    assert points(figure.axes[0]) == {"slstm": ([1], [10])}


def test_refusals(folder, invoke, tmp_path):
    def refused(*arguments):
        result = invoke(*arguments)
        assert result.exit_code == 2, result.output
        assert not (tmp_path / "out").exists()
        return " ".join(result.output.split())

    assert "must be a run's folder or a folder of runs" in refused("figure-4", folder)
    run = make_run(folder, "memorization", "slstm", 1, ())
    assert "of runs with an evaluation but got 'none yet'" in refused("figure-4", folder)
    assert "'runs' must be evaluated with 'accuracy'" in refused("curves", folder)
    message = refused("figure-5", run.path)
    assert "of runs on mnist or pmnist but got ['memorization']" in message
    run.append_metrics({"samples": 1, "accuracy": 0.5, "split": "test", "seconds": 1.0})
    make_run(folder, "memorization", "2d-tlstm", 1, (0.5,), forget_bias=4.0)
    message = refused("figure-4", folder)
    assert "must be of runs that differ in variant, depth and seed only" in message
    assert "'memorization-2d-tlstm-L1-s0'" in message
    assert "'memorization-slstm-L1-s0'" in message
    make_run(folder, "wikipedia", "slstm", 1, (2.0,))
    assert "of tasks with one metric" in refused("curves", folder)

    times = tmp_path / "times.json"
    times.write_text('{"rows": []}')
    assert "'times' must be of memorization too" in refused("figure-4", run.path, "--times", times)
    assert "--times goes with figure-3" in refused("curves", run.path, "--times", times)
    (run.path / "config.json").write_text("[")
    assert "must hold JSON" in refused("figure-4", run.path)
    assert "'figure-6' is not one of" in refused("figure-6", run.path)


def test_the_models_in_a_run_are_no_runs(tmp_path):
    run = make_run(tmp_path, "addition", "slstm", 1, [0.5])
    for name in WEIGHTS:
        (run.path / name).mkdir()
        (run.path / name / "config.json").write_text('{"format": 1}')
    assert find_runs([tmp_path]) == find_runs([run.path]) == [run.path]
    with pytest.raises(ValueError, match="'path' must be a run's folder or a folder of runs"):
        find_runs([run.path / "best"])

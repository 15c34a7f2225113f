"""Pictures of runs: panels of the paper's figures, and learning curves as a user starts them."""

from __future__ import annotations

import learning_curves
import pytest
from click.testing import CliRunner
from experiments.pictures import draw_figure
from experiments.plans import FIGURES
from experiments.results import read_result
from tiny_tasks import write_run

from mlx_tlstm.tasks import TASKS
from mlx_tlstm.visualize import variant_style


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "runs"
    path.mkdir()
    return path


def make_run(folder, task, variant, depth, values, seed=0, **changes):
    """A run with an evaluation a value."""
    changes |= {"variant": variant, "depth": depth, "seed": seed}
    if task == "wikipedia":
        changes |= {"data": "text.xml"}
    config = TASKS[task].quick().replace(**changes)
    name = f"{task}-{variant}-L{depth}-s{seed}"
    return write_run(folder / name, config, values, split=TASKS[task].monitor)


def drawn(name, folder):
    """A figure's panels of the runs in a folder."""
    results = [read_result(path) for path in sorted(folder.iterdir())]
    tasks = {
        task: [result for result in results if result.config.task == task]
        for task in FIGURES[name].tasks
    }
    return draw_figure({task: found for task, found in tasks.items() if found}, ", small").axes


def points(axes):
    """By the legend's label: depths and medians."""
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    lines = [container[0] for container in axes.containers]
    return {
        label: (line.get_xdata().astype(float).tolist(), line.get_ydata().astype(float).tolist())
        for label, line in zip(labels, lines, strict=True)
    }


def test_a_figure_of_two_tasks(folder):
    for depth in (1, 4):
        make_run(folder, "memorization", "slstm", depth, (0.1, depth / 10))
        make_run(folder, "memorization", "3d-tlstm", depth, (0.5, 0.2))
    make_run(folder, "addition", "2d-tlstm", 4, (0.25,))
    addition, memorization = drawn("figure-4", folder)
    assert points(memorization) == {"slstm": ([1, 4], [10, 40]), "3d-tlstm": ([1, 4], [50, 50])}
    assert points(addition) == {"2d-tlstm": ([4], [25])}
    assert memorization.get_ylabel() == "best test accuracy (%)"
    assert memorization.get_title() == "memorization, 5 symbols, M=100, 1 seed, small"
    line = memorization.containers[1][0]
    assert line.get_color() == variant_style("3d-tlstm")["color"]


def test_samples_stand_beside_where_a_run_solved_its_task(folder):
    make_run(folder, "memorization", "slstm", 4, (0.1, 0.4))
    make_run(folder, "memorization", "3d-tlstm", 4, (0.5, 1.0))
    make_run(folder, "addition", "2d-tlstm", 4, (0.25,))
    _, empty, memorization, samples = drawn("figure-4", folder)
    assert not empty.axison
    assert points(memorization) == {"slstm": ([4], [40]), "3d-tlstm": ([4], [100])}
    assert points(samples)["3d-tlstm"] == ([4], [2])
    assert samples.get_ylabel() == "samples until all right (thousands)"


def test_seeds_are_one_point(folder):
    for seed, value in enumerate((0.2, 0.9, 0.4)):
        make_run(folder, "mnist", "3d-tlstm+cn", 3, (value,), seed)
    (axes,) = drawn("figure-5", folder)
    assert points(axes) == {"3d-tlstm+cn": ([3], [40])}
    (bars,) = axes.containers[0][2]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([20, 90])
    assert axes.get_ylabel() == "best validation accuracy (%)"
    assert axes.get_title().endswith("3 seeds, small")


def test_bits_are_best_where_least(folder):
    make_run(folder, "wikipedia", "3d-tlstm+ln", 2, (3.0, 2.0, 2.5), hidden_size=52)
    make_run(folder, "wikipedia", "slstm", 2, (3.0, 2.8), hidden_size=112)
    (axes,) = drawn("figure-3", folder)
    assert points(axes) == {"slstm": ([2], [2.8]), "3d-tlstm+ln (not causal)": ([2], [2.0])}
    assert axes.get_ylabel() == "best validation bits per character"
    assert axes.get_title() == "wikipedia, chunks of 50 bytes, M=112, 52, 1 seed, small"


@pytest.fixture
def invoke(tmp_path):
    def call(*runs):
        command = [*(str(run.path) for run in runs), "--out", str(tmp_path / "out" / "curves")]
        return CliRunner().invoke(learning_curves.main, command)

    return call


def test_curves(folder, invoke, tmp_path, monkeypatch):
    runs = [
        make_run(folder, "memorization", "slstm", 4, (0.1, 0.4)),
        make_run(folder, "addition", "slstm", 4, (0.2,)),
    ]
    saved = []
    with monkeypatch.context() as patch:
        patch.setattr(learning_curves, "save_figure", lambda figure, _: saved.append(figure) or [])
        assert invoke(*runs).exit_code == 0
    lines = saved[0].axes[0].get_lines()
    curves = [line.get_xydata().tolist() for line in lines]
    assert sorted(curves) == [[[1000, 10], [2000, 40]], [[1000, 20]]]
    result = invoke(runs[0])
    assert result.exit_code == 0, result.output
    png, svg = (tmp_path / "out" / f"curves.{ending}" for ending in ("png", "svg"))
    assert result.stdout.split() == [str(png), str(svg)]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in svg.read_text()


def test_refusals(folder, invoke, tmp_path):
    def refused(*runs):
        result = invoke(*runs)
        assert result.exit_code == 2, result.output
        assert not (tmp_path / "out").exists()
        return " ".join(result.output.split())

    new = make_run(folder, "memorization", "slstm", 1, ())
    assert "'runs' must be evaluated with 'accuracy'" in refused(new)
    one = make_run(folder, "memorization", "slstm", 4, (0.5,))
    other = make_run(folder, "wikipedia", "slstm", 1, (2.0,))
    assert "of tasks with one metric" in refused(one, other)
    command = [str(one.path), "--out", str(tmp_path / "out" / "curves.pdf")]
    result = CliRunner().invoke(learning_curves.main, command)
    assert result.exit_code == 2, result.output
    assert "'stem' must be without ending" in " ".join(result.output.split())
    (one.path / "config.json").write_text("[")
    assert "must hold JSON" in refused(one)

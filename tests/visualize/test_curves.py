"""Drawings of runs: numbers in the lines, labels, and looks that are told apart."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from tiny_tasks import write_run

from mlx_tlstm import VARIANTS
from mlx_tlstm.checking.timing import Timing
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.visualize import (
    draw_by_depth,
    draw_learning_curves,
    draw_runtime,
    save_figure,
    variant_style,
)


@pytest.fixture
def make_run(tmp_path):
    names = map(str, itertools.count())

    def make(values, task="memorization", records=None, **changes):
        config = TASKS[task].quick().replace(**changes)
        return write_run(tmp_path / next(names), config, values, **records or {})

    return make


def lines(figure, number=0):
    return figure.axes[number].get_lines()


def legend(figure, number=0):
    return [text.get_text() for text in figure.axes[number].get_legend().get_texts()]


def errorbars(figure):
    """By label: the line's x and y, and the low and high end of each bar."""
    found = {}
    for container in figure.axes[0].containers:
        line, _, (bars,) = container
        segments = [segment[:, 1].tolist() for segment in bars.get_segments() if len(segment)]
        x, y = (values.astype(float) for values in line.get_data())
        found[container.get_label()] = (x, y, segments)
    return found


def test_every_variant_has_a_look_of_its_own():
    styles = {name: variant_style(name) for name in VARIANTS}
    for part in ("color", "marker"):
        assert len({styles[name][part] for name in styles}) == len(VARIANTS), part
    for one, other in itertools.combinations(styles.values(), 2):
        distance = np.abs(np.subtract(to_rgb(one["color"]), to_rgb(other["color"]))).sum()
        assert distance > 0.2, (one, other)


def test_a_cell_that_this_program_does_not_know(make_run):
    """Drawing needs its name only."""
    figure = draw_learning_curves([make_run((0.1, 0.4), variant=name) for name in ("gru", "lstm")])
    assert legend(figure) == ["gru", "lstm"]
    own, rival = (line.get_marker() for line in lines(figure))
    assert own == variant_style("gru")["marker"]
    assert own not in {variant_style(name)["marker"] for name in VARIANTS}
    assert rival == variant_style("lstm")["marker"]


def test_several_lines_of_a_variant_are_told_apart():
    styles = [variant_style("3d-tlstm+cn", number, 5) for number in range(5)]
    assert styles[0] == variant_style("3d-tlstm+cn")
    assert len({style["linestyle"] for style in styles}) == 5
    assert len({style["marker"] for style in styles}) == 1
    brightness = [sum(style["color"]) for style in styles]
    assert brightness == sorted(set(brightness))
    assert max(max(style["color"]) for style in styles) < 0.9  # still seen on white


def test_learning_curves(make_run):
    runs = [
        make_run((0.1, 0.4), variant="slstm", records={"split": "test"}),
        make_run((0.2, 0.9), variant="3d-tlstm", records={"split": "test"}),
        make_run((0.3, 1.0), variant="3d-tlstm", records={"split": "test"}, seed=1, samples=2000),
    ]
    figure = draw_learning_curves(runs)
    (axes,) = figure.axes
    assert [line.get_xydata().tolist() for line in lines(figure)] == [
        [[1000, 10], [2000, 40]],
        [[1000, 20], [2000, 90]],
        [[1000, 30], [2000, 100]],
    ]
    assert legend(figure) == ["slstm", "3d-tlstm"]  # two seeds of one setting are one entry
    slstm, first, second = lines(figure)
    for line, name in ((slstm, "slstm"), (first, "3d-tlstm"), (second, "3d-tlstm")):
        style = variant_style(name)
        assert (line.get_color(), line.get_marker()) == (style["color"], style["marker"])
        assert line.get_linestyle() == style["linestyle"]
    assert axes.get_xlabel() == "training samples"
    assert axes.get_ylabel() == "test accuracy (%)"
    assert axes.get_title() == "memorization 5, L=4, M=100"


def test_runs_are_labelled_by_what_differs(make_run):
    variant = "2d-tlstm+cn"
    runs = [
        make_run((0.1,), variant=variant, beta2=0.99, forget_bias=1.0),
        make_run((0.1,), variant=variant, forget_bias=4.0, learning_rate=0.003, hidden_size=50),
        make_run((0.1,), "addition", length=5, depth=7),
    ]
    figure = draw_learning_curves(runs)
    assert legend(figure) == [
        "memorization, L=4, M=100, forget bias 1, learning rate 0.001, beta2 0.99",
        "memorization, L=4, M=50, forget bias 4, learning rate 0.003, beta2 0.999",
        "addition, L=7, M=200, forget bias 1, learning rate 0.001, beta2 0.999",
    ]
    assert figure.axes[0].get_title() == variant
    looks = {(line.get_color(), line.get_linestyle()) for line in lines(figure)}
    assert len(looks) == 3
    assert draw_learning_curves(runs[:1]).axes[0].get_legend() is None


def test_data_is_told_by_its_name(make_run):
    runs = [
        make_run((2.0,), "wikipedia", data="/here/text.xml"),
        make_run((2.1,), "wikipedia", data="/there/text.xml", seed=1),
    ]
    assert draw_learning_curves(runs).axes[0].get_legend() is None
    other = make_run((2.2,), "wikipedia", data="/there/enwik8")
    assert legend(draw_learning_curves([*runs, other])) == ["data text.xml", "data enwik8"]


@pytest.mark.parametrize(
    ("evaluations", "label", "last"),
    [
        (9, "training samples", 9000),
        (10, "training samples (thousands)", 10),
        (10_000, "training samples (millions)", 10),
    ],
)
def test_units_of_samples(make_run, evaluations, label, last):
    figure = draw_learning_curves([make_run([0.5] * evaluations)])
    assert figure.axes[0].get_xlabel() == label
    assert lines(figure)[0].get_xdata()[-1] == last


def test_metrics(make_run):
    text = make_run((2.0, 1.5), "wikipedia", data="x", records={"split": "validation", "loss": 3.0})
    figure = draw_learning_curves([text])
    assert figure.axes[0].get_ylabel() == "validation bits per character"
    assert lines(figure)[0].get_ydata().tolist() == [2.0, 1.5]
    loss = draw_learning_curves([text], "loss")
    assert loss.axes[0].get_ylabel() == "training loss (nats)"
    assert lines(loss)[0].get_ydata().tolist() == [3.0, 3.0]
    norms = make_run((0.1,), records={"gradient_norm": 5.0})
    assert draw_learning_curves([norms], "gradient_norm").axes[0].get_yscale() == "log"


def test_learning_curves_of_paths(make_run):
    runs = [make_run((0.1, 0.6)), make_run((0.3, float("nan")), depth=7)]
    expected = draw_learning_curves(runs)
    for given in (
        [str(run.path) for run in runs],
        (run.path for run in runs),
        [runs[0], str(runs[1].path)],
    ):
        figure = draw_learning_curves(given)
        assert legend(figure) == legend(expected) == ["L=4", "L=7"]
        for line, other in zip(lines(figure), lines(expected), strict=True):
            np.testing.assert_array_equal(line.get_xydata(), other.get_xydata())
    for one in (runs[0], runs[0].path, str(runs[0].path)):
        assert lines(draw_learning_curves(one))[0].get_ydata().tolist() == [10.0, 60.0]


def test_learning_curves_refuse(make_run, tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder '.*no'"):
        draw_learning_curves([str(tmp_path / "no")])
    with pytest.raises(ValueError, match="'runs' must be RunFolders or paths of folders but got 3"):
        draw_learning_curves([3])
    with pytest.raises(ValueError, match="'runs' must be RunFolders or paths of folders but got N"):
        draw_learning_curves(None)
    good, text = make_run((0.5,)), make_run((2.0,), "wikipedia", data="x")
    with pytest.raises(ValueError, match="'runs' must be at least one run"):
        draw_learning_curves([])
    with pytest.raises(ValueError, match=r"tasks with one metric but got \['accuracy', 'bpc'\]"):
        draw_learning_curves([good, text])
    with pytest.raises(ValueError, match=r"evaluated with 'accuracy' but got '.*/2'"):
        draw_learning_curves([good, make_run(())])
    with pytest.raises(ValueError, match="evaluated with 'loss'"):
        draw_learning_curves([good], "loss")
    with pytest.raises(ValueError, match="'metric' must be one of 'accuracy'"):
        draw_learning_curves([good], "speed")


def test_by_depth_medians_and_ranges():
    points = {
        "3d-tlstm": {4: [70.0, 90.0, 71.0], 1: [50.0]},
        "slstm": {1: [30.0, 20.0], 4: [10.0, 12.0]},
    }
    figure = draw_by_depth(points, "test accuracy (%)")
    assert legend(figure) == ["slstm", "3d-tlstm"]  # in the paper's order
    found = errorbars(figure)
    x, y, bars = found["slstm"]
    assert y.tolist() == [25, 11]
    assert bars == [[20, 30], [10, 12]]
    other_x, y, bars = found["3d-tlstm"]
    assert y.tolist() == [50, 71]
    assert bars == [[50, 50], [70, 90]]
    # Moved apart a little, to either side of their depth.
    np.testing.assert_allclose((x + other_x) / 2, [1, 4])
    assert 0 < other_x[0] - x[0] < 1
    (axes,) = figure.axes
    assert axes.get_xticks().tolist() == [1, 4]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("depth L", "test accuracy (%)")


def test_by_depth_shows_every_depth_with_room():
    """Also where the first depths have gaps only, and where there is one depth."""
    gaps = {"slstm": {1: [], 4: [1.0, 2.0]}, "2d-tlstm": {1: [], 4: [3.0, 5.0]}}
    for points in (gaps, {"slstm": {4: [1.0, 2.0]}}):
        axes = draw_by_depth(points, "accuracy (%)").axes[0]
        low, high = axes.get_xlim()
        drawn = np.concatenate([line.get_xdata() for line in axes.lines])
        assert low < min(drawn) <= max(drawn) < high


def test_by_depth_leaves_gaps():
    points = {
        "2d-tlstm": {1: [1.0], 4: [2.0], 7: [3.0]},
        "3d-tlstm": {1: [4.0], 7: [5.0]},
        "3d-tlstm+cn": {1: [], 4: [6.0]},
        "slstm": {1: []},
    }
    figure = draw_by_depth(points, "bits", labels={"3d-tlstm": "deep"})
    assert legend(figure) == ["2d-tlstm", "deep", "3d-tlstm+cn"]
    x, y, _ = errorbars(figure)["3d-tlstm"]
    assert x.tolist() == [1, 4, 7]  # one seed: nothing is moved
    np.testing.assert_array_equal(y, [4, math.nan, 5])
    np.testing.assert_array_equal(errorbars(figure)["3d-tlstm+cn"][1], [math.nan, 6, math.nan])


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({}, "finite numbers, one or more"),
        ({"slstm": {1: []}}, "finite numbers, one or more"),
        ({"slstm": {1: [math.nan]}}, "finite numbers, one or more"),
        ({"slstm": {1: [None]}}, "finite numbers, one or more"),
        ({"gru": {1: [1.0]}}, "one of 'slstm'"),
        ({"slstm": {0: [1.0]}}, "of depths of 1 or more"),
        ({"slstm": {1: 0.5}}, "a mapping of variants to mappings of depths to sequences"),
        ([0.5], "a mapping of variants"),
    ],
)
def test_by_depth_refuses(points, message):
    with pytest.raises(ValueError, match=f"'points' must be {message}"):
        draw_by_depth(points, "accuracy")


def timing(*milliseconds):
    return Timing(milliseconds, 0)


def test_runtime_shows_medians_quartiles_and_ratios():
    points = {
        "2d-tlstm": {1: timing(1, 2, 3, 4, 5), 5: timing(4, 8, 20, 6, 2)},
        "slstm": {1: timing(1, 1, 1, 1, 1), 5: timing(4, 5, 6, 5, 5)},
        "3d-tlstm": {5: timing(3, 3, 3, 3, 3)},
    }
    figure = draw_runtime(points)
    found = errorbars(figure)
    assert found["2d-tlstm"][1].tolist() == [3, 6]
    assert found["2d-tlstm"][2] == [[2, 4], [4, 8]]
    assert found["slstm"][0].tolist() == [1, 5]
    # The median of the ratios within a round, not the ratio of medians, which is 2.
    assert legend(figure) == ["slstm  ×5.0", "2d-tlstm  ×4.0", "3d-tlstm"]
    (axes,) = figure.axes
    assert axes.get_legend().get_title().get_text() == "L=5 relative to L=1"
    assert axes.get_ylabel() == "ms per timestep per example"
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0


def test_runtime_axis_is_logarithmic_over_a_wide_range():
    figure = draw_runtime({"slstm": {1: timing(1.0), 10: timing(11.0)}})
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    figure.draw_without_rendering()
    labels = {label.get_text() for label in axes.get_yticklabels()}
    assert {"1", "2", "5", "10"} <= labels
    with pytest.raises(ValueError, match="'points' must be at least one time"):
        draw_runtime({"slstm": {}})
    with pytest.raises(ValueError, match=r"'points' must be a mapping .* to Timings"):
        draw_runtime({"slstm": {1: [1.0]}})


def test_drawings_keep_to_the_axes_they_are_given(make_run):
    figure = Figure()
    first, second, third = figure.subplots(1, 3)
    assert draw_by_depth({"slstm": {1: [1.0]}}, "bits", first) is figure
    assert draw_runtime({"slstm": {1: timing(1.0)}}, second) is figure
    assert draw_learning_curves([make_run((0.5,))], axes=third) is figure
    assert len(figure.axes) == 3
    assert pyplot.get_fignums() == []
    with pytest.raises(ValueError, match="'axes' must be a matplotlib Axes or None"):
        draw_by_depth({"slstm": {1: [1.0]}}, "bits", axes="here")


def test_many_variants_are_labelled_by_their_names(make_run):
    names = list(VARIANTS)[:8]
    runs = [make_run((0.1,), variant=name, hidden_size=4 + n) for n, name in enumerate(names)]
    assert legend(draw_learning_curves(runs)) == names
    [first, *_] = legend(draw_learning_curves(runs[:3]))
    assert first == f"{names[0]}, M=4"


def test_no_label_is_clipped(make_run):
    """Legends stand beside or below the lines, inside the picture."""
    long = [
        make_run((0.1, 0.9), learning_rate=rate, on_divergence="rollback") for rate in (1e-3, 2e-3)
    ]
    long.append(make_run((0.2, 0.8), forget_bias=4.0))
    points = {name: {1: timing(1.0), 10: timing(20.0)} for name in VARIANTS}
    for figure in (draw_learning_curves(long), draw_runtime(points)):
        figure.draw_without_rendering()
        (axes,) = figure.axes
        legend_box = axes.get_legend().get_window_extent()
        assert not legend_box.overlaps(axes.get_window_extent())
        width, height = figure.bbox.size
        assert legend_box.x0 >= 0
        assert legend_box.y0 >= 0
        assert legend_box.x1 <= width
        assert legend_box.y1 <= height


def test_save_figure(tmp_path):
    figure = draw_by_depth({"slstm": {1: [1.0]}}, "bits")
    png, svg = save_figure(figure, tmp_path / "new" / "fig.v1")
    assert (png.name, svg.name) == ("fig.v1.png", "fig.v1.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in svg.read_text()
    for name in ("pic.png", "pic.svg", "pic.PNG", "pic"):
        paths = save_figure(figure, tmp_path / name)
        assert [path.name for path in paths] == ["pic.png", "pic.svg"]
    assert save_figure(figure, tmp_path / ".png")[0].name == ".png.png"
    for name in ("pic.pdf", "pic.JPG"):
        with pytest.raises(ValueError, match=r"'stem' must be without ending, or with one of png"):
            save_figure(figure, tmp_path / name)

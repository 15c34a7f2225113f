"""Pictures of sweeps: figures over the depth, and learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.panels import draw_performance_panel
from experiments.plans import FIGURES, Request, figure_runs, study_runs
from experiments.results import RunResult
from experiments.tables import Results, settled
from mlx_tlstm.training.runs import CONFIG_FILE, RunFolder
from mlx_tlstm.visualize import draw_by_depth, draw_learning_curves

_COLUMNS = 2
#: Inches of one panel with its legend.
_WIDTH, _HEIGHT = 6.4, 3.6


def draw_figure(target: str, request: Request, results: Results) -> Figure | None:
    """A figure's performance panels; ``None`` where no run has ended.

    Beside an algorithmic task's stand the samples until all answers were right, where some run got
    there.
    """
    runs = figure_runs(target, request)
    rows = []
    for task in FIGURES[target].tasks:
        found = settled([run for run in runs if run.config.task == task], results)
        if found:
            rows.append((found, any(result.to_100 is not None for result in found)))
    if not rows:
        return None
    side_by_side = not any(solved for _, solved in rows)
    figure, panels = _grid(len(rows) if side_by_side else _COLUMNS * len(rows))
    for number, (found, solved) in enumerate(rows):
        left = panels[number if side_by_side else _COLUMNS * number]
        draw_performance_panel(found, left)
        left.set_title(f"{left.get_title()}, {request.scale} scale", fontsize="medium")
        if solved:
            right = panels[_COLUMNS * number + 1]
            _draw_samples(found, right)
            right.set_title(left.get_title(), fontsize="medium")
    _hide_empty(panels)
    return figure


def draw_study(target: str, request: Request, folder: Path) -> Figure | None:
    """Learning curves, a panel for each comparison; ``None`` where no run was evaluated."""
    panels = {
        panel: [folder / run.name for seeds in ways for run in seeds]
        for panel, ways in study_runs(target, request).items()
    }
    return draw_curves(list(panels.values()), list(panels))


def draw_curves(
    panels: Sequence[Sequence[Path]], titles: Sequence[str] | None = None
) -> Figure | None:
    """Learning curves of runs' folders, a panel for each sequence of them.

    Folders that hold no evaluation yet are left out; ``None`` where none does. ``titles`` go above
    the panels' own.
    """
    evaluated = [(found, n) for n, paths in enumerate(panels) if (found := _evaluated(paths))]
    if not evaluated:
        return None
    figure, places = _grid(len(evaluated))
    for (runs, number), axes in zip(evaluated, places, strict=False):
        draw_learning_curves(runs, axes=axes)
        if titles is not None:
            axes.set_title(f"{titles[number]}\n{axes.get_title()}", fontsize="medium")
    _hide_empty(places)
    return figure


def _draw_samples(results: Sequence[RunResult], axes: Axes) -> None:
    """Training samples until all answers were right, of the runs that got there."""
    points: dict[str, dict[int, list[float]]] = {}
    for result in results:
        values = points.setdefault(result.config.variant, {}).setdefault(result.config.depth, [])
        if result.to_100 is not None:
            values.append(result.to_100 / 1000)
    draw_by_depth(points, "samples until all right (thousands)", axes)
    axes.set_ylim(bottom=0)


def _evaluated(paths: Sequence[Path]) -> list[RunFolder]:
    runs = [RunFolder.open(path) for path in paths if (path / CONFIG_FILE).is_file()]
    return [run for run in runs if run.read_metrics()]


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels or, to fill its rows, some more."""
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _hide_empty(panels: Sequence[Axes]) -> None:
    for axes in panels:
        if not axes.has_data():
            axes.set_axis_off()

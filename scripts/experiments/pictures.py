"""Pictures of runs and run times: figures over the depth, and learning curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import report
from experiments.plans import EACH_TASK, FIGURES, Request, figure_runs, study_runs, task_runs
from experiments.results import RunResult
from experiments.studies import STUDIES
from experiments.task_passes import points_of
from experiments.task_times import Row, by_task, shared_sizes
from mlx_tlstm import VARIANTS
from mlx_tlstm.checking.timing import Timing
from mlx_tlstm.training.runs import CONFIG_FILE, RunFolder
from mlx_tlstm.visualize import draw_by_depth, draw_learning_curves, draw_runtime
from mlx_tlstm.visualize.curves import METRICS

#: Inches of one panel with its legend.
_WIDTH, _HEIGHT = 6.4, 3.6


def target_picture(
    target: str, request: Request, results: report.Results, folder: Path
) -> Figure | None:
    """A target's picture; ``None`` where it has none, or no run is far enough.

    Args:
        target: What is drawn: a figure's panels, or learning curves.
        request: Its scale and seeds.
        results: Of its runs.
        folder: Of its runs' folders.
    """
    if target in FIGURES:
        runs = figure_runs(target, request)
        tasks = {
            task: report.settled([run for run in runs if run.config.task == task], results)
            for task in FIGURES[target].tasks
        }
        tasks = {task: found for task, found in tasks.items() if found}
        return draw_figure(tasks, f", {request.scale} scale") if tasks else None
    if target == EACH_TASK:
        return draw_curves([("", [folder / run.name]) for run in task_runs(request)])
    panels = study_runs(target, request) if target in STUDIES else {}
    return draw_curves(
        [(name, [folder / run.name for w in ways for run in w]) for name, ways in panels.items()]
    )


def draw_figure(tasks: Mapping[str, Sequence[RunResult]], note: str) -> Figure:
    """A performance panel for each task; to its right samples until all answers were right.

    Where no run got there, the panels of two tasks stand side by side.

    Args:
        tasks: Runs by task, each with an evaluation.
        note: Ends the panels' titles.
    """
    solved = {task for task, found in tasks.items() if any(r.to_100 is not None for r in found)}
    figure, panels = _grid(len(tasks) * (2 if solved else 1))
    for task, results in tasks.items():
        left = panels.pop(0)
        draw_performance_panel(results, left)
        left.set_title(left.get_title() + note, fontsize="medium")
        right = panels.pop(0) if solved else None
        if task in solved:
            _draw_samples(results, right)
            right.set_title(left.get_title(), fontsize="medium")
        elif right is not None:
            right.set_axis_off()
    return figure


def draw_performance_panel(results: Sequence[RunResult], axes: Axes) -> None:
    """The best value of the task's metric over the depth, a line a variant.

    It is taken on the split that training is watched on: the test samples of the algorithmic
    tasks, which the paper reports, and elsewhere the validation split. A language model under
    layer normalisation is marked: it sees what it predicts.

    Args:
        results: Runs on one task, each with an evaluation.
        axes: Where to draw.
    """
    first, task = results[0], results[0].config.task
    label, scale = METRICS[first.metric]
    leaky = {result.config.variant for result in results if report.leaks(result.config)}
    labels = {variant: f"{variant} (not causal)" for variant in leaky}
    points = _points(results, lambda result: scale * result.best)
    draw_by_depth(points, f"best {first.split} {label}", axes, labels)
    order = list(VARIANTS)
    configs = sorted((r.config for r in results), key=lambda config: order.index(config.variant))
    seeds = len({config.seed for config in configs})
    size = f"{report.size_text(*configs)}, {seeds} seed{'s' if seeds > 1 else ''}"
    axes.set_title(f"{task}, {size}", fontsize="medium")


def _draw_samples(results: Sequence[RunResult], axes: Axes) -> None:
    """Training samples until all answers were right, of the runs that got there."""
    points = _points(results, lambda result: result.to_100 and result.to_100 / 1000)
    draw_by_depth(points, "samples until all right (thousands)", axes)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # or the uppermost marker could be cut


def _points(results: Sequence[RunResult], value: Any) -> dict[str, dict[int, list[float]]]:
    """By variant and depth what ``value`` makes of the results; ``None`` is left out."""
    points: dict[str, dict[int, list[float]]] = {}
    for result in results:
        config, found = result.config, value(result)
        seeds = points.setdefault(config.variant, {}).setdefault(config.depth, [])
        seeds += [] if found is None else [found]
    return points


def draw_runtime_panel(rows: Sequence[Row], axes: Axes) -> None:
    """A task's rows: depth on the x axis, a line a variant; the title says the sizes."""
    points: dict[str, dict[int, Timing]] = {}
    for row in rows:
        timing = Timing(tuple(row["milliseconds"]), row["peak_bytes"])
        points.setdefault(row["variant"], {})[row["depth"]] = timing
    draw_runtime(points, axes)
    task = rows[0]["task"]
    full = points_of(task, False, list(points))
    paper = shared_sizes([dataclasses.asdict(point) for depths in full for point in depths])
    title = shared_sizes(rows)
    if title != paper:
        title += f"\nreduced; the paper's: {paper}"
    axes.set_title(f"{task}, {title}", fontsize="medium")


def draw_times(rows: Sequence[Row], facts: Mapping[str, Any]) -> Figure:
    """A runtime panel for each task in ``rows``, and where they were measured."""
    tasks = by_task(rows)
    figure, panels = _grid(len(tasks))
    for of_task, axes in zip(tasks.values(), panels, strict=False):
        draw_runtime_panel(of_task, axes)
    figure.suptitle(
        f"Forward and backward pass on {facts['device']}\n"
        f"MLX {facts['mlx']}, commit {facts['commit']}",
        fontsize="medium",
    )
    return figure


def draw_curves(panels: Sequence[tuple[str, Sequence[Path]]]) -> Figure | None:
    """Learning curves, a panel for each title and its runs' folders.

    Folders that hold no evaluation yet are left out; ``None`` where none does.
    """
    evaluated = [(title, found) for title, paths in panels if (found := _evaluated(paths))]
    if not evaluated:
        return None
    figure, places = _grid(len(evaluated))
    for (title, runs), axes in zip(evaluated, places, strict=False):
        draw_learning_curves(runs, axes=axes)
        if title:
            axes.set_title(f"{title}\n{axes.get_title()}", fontsize="medium")
    return figure


def _evaluated(paths: Sequence[Path]) -> list[RunFolder]:
    runs = [RunFolder.open(path) for path in paths if (path / CONFIG_FILE).is_file()]
    return [run for run in runs if run.read_metrics()]


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels, two in a row; places that are left over are empty."""
    columns = min(count, 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]

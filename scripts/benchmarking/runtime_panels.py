"""The runtime panels of Fig. 3 to 5, drawn from rows of times."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarking.task_passes import points_of
from benchmarking.task_times import Row, by_task, check_rows, size_text
from mlx_tlstm.checking.timing import Timing
from mlx_tlstm.checks import require
from mlx_tlstm.files import read_json
from mlx_tlstm.visualize import draw_runtime

_PANELS_IN_A_ROW = 2
#: Inches of a panel with its legend.
_WIDTH, _HEIGHT = 6.0, 3.5


def draw_runtime_panel(rows: Sequence[Row], axes: Axes) -> None:
    """A task's rows: depth on the x axis, a line a variant; the title says the sizes."""
    points: dict[str, dict[int, Timing]] = {}
    for row in rows:
        timing = Timing(tuple(row["milliseconds"]), row["peak_bytes"])
        points.setdefault(row["variant"], {})[row["depth"]] = timing
    draw_runtime(points, axes)
    task = rows[0]["task"]
    variants = points_of(task, quick=False)
    paper = size_text([dataclasses.asdict(point) for depths in variants for point in depths])
    title = size_text(rows)
    if title != paper:
        title += f"\nreduced; the paper's: {paper}"
    axes.set_title(f"{task}, {title}", fontsize="medium")


def draw_panels(rows: Sequence[Row], facts: dict[str, Any]) -> Figure:
    """One panel for each task in ``rows``, and where they were measured."""
    tasks = by_task(rows)
    columns = min(len(tasks), _PANELS_IN_A_ROW)
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * lines + 0.5), layout="constrained")
    for number, of_task in enumerate(tasks.values(), start=1):
        draw_runtime_panel(of_task, figure.add_subplot(lines, columns, number))
    figure.suptitle(
        f"Forward and backward pass on {facts['device']}\n"
        f"MLX {facts['mlx']}, commit {facts['commit']}",
        fontsize="medium",
    )
    return figure


def write_times(path: Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Write rows and where they were measured as JSON."""
    path.write_text(json.dumps({"facts": facts, "rows": rows}, indent=2) + "\n")


def read_times(path: Path) -> dict[str, list[Row]]:
    """The rows of each task that :func:`write_times` wrote.

    Raises:
        ValueError: The file holds something else.
    """
    times = read_json(path, "figures")
    valid = isinstance(times, dict) and isinstance(times.get("rows"), list)
    require(valid, "figures", "times", "a times.json of time_tasks.py", str(path))
    check_rows("figures", str(path), times["rows"])
    return by_task(times["rows"])

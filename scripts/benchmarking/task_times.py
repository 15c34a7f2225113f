"""Run times of the paper's panels: measured, kept, and told."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking.products import bare_products
from benchmarking.report import Table
from benchmarking.task_passes import Point, TaskPass, products_of
from mlx_tlstm.checking.timing import Timing, measure, per_timestep_example
from mlx_tlstm.checks import require
from mlx_tlstm.files import read_json_lines, replace_file

#: A row: a point's sizes, and what :func:`measure_depths` found.
Row = dict[str, Any]
_SIZES = tuple(field.name for field in dataclasses.fields(Point))
_FOUND = (
    "median",
    "quartiles",
    "products",
    "to_products",
    "to_first",
    "peak_bytes",
    "milliseconds",
)
_KEYS = frozenset((*_SIZES, *_FOUND))


def measure_depths(points: Sequence[Point], rounds: int, warmup: int) -> list[Row]:
    """Time one variant's depths and their bare products in the same interleaved rounds.

    Returns:
        A row a point. ``milliseconds`` holds the rounds, per timestep per example, and ``median``,
        ``quartiles`` and ``products`` (the median of the bare products) are in the same unit.
        ``to_products`` and ``to_first`` are medians of ratios within a round, to the bare products
        and to the first depth. ``peak_bytes`` is the memory of a pass.
    """
    gc.collect()  # passes before refer to themselves; freed later, they would hide memory in use
    candidates = {}
    for point in points:
        candidates[f"{point.depth}"] = TaskPass(point).run
        candidates[f"{point.depth} products"] = bare_products(products_of(point))
    timings = measure(candidates, rounds=rounds, warmup=warmup)
    rows = []
    first = timings[f"{points[0].depth}"]
    for point in points:
        taken, products = timings[f"{point.depth}"], timings[f"{point.depth} products"]
        timing, floor = (_in_unit(timing, point) for timing in (taken, products))
        found = {
            "median": timing.median,
            "quartiles": list(timing.quartiles),
            "products": floor.median,
            "to_products": taken.ratio(products),
            "to_first": taken.ratio(first),
            "peak_bytes": taken.peak_bytes,
            "milliseconds": list(timing.milliseconds),
        }
        rows.append(dataclasses.asdict(point) | found)
    return rows


def _in_unit(timing: Timing, point: Point) -> Timing:
    values = (
        per_timestep_example(value, point.length, point.batch_size) for value in timing.milliseconds
    )
    return Timing(tuple(values), timing.peak_bytes)


class KeptRows:
    """Rows in a file, so that measuring goes on where it was stopped.

    The first line says with what the rows were taken.

    Args:
        path: The file; it need not be there.
        settings: With what rows are taken now, by name. A file of others is put aside, under the
            name that ``put_aside`` has.

    Attributes:
        rows: Those of the file.
        changes: Settings that are not as in the file that was put aside, with both values.

    Raises:
        ValueError: The file holds something else.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = dict(settings)
        self.rows: list[Row] = []
        self.changes: dict[str, tuple[Any, Any]] = {}
        self.put_aside = path.with_name(f"{path.stem}.before{path.suffix}")
        if not path.exists():
            return
        before, *rows = _read_lines(path)
        names = before.keys() | self.settings.keys()
        self.changes = {
            name: (before.get(name), self.settings.get(name))
            for name in sorted(names)
            if before.get(name) != self.settings.get(name)
        }
        if self.changes:
            path.replace(self.put_aside)
        else:
            self.rows = rows

    def of(self, points: Iterable[Point]) -> list[Row] | None:
        """The rows of these points, or ``None`` where one is missing."""
        sizes = [dataclasses.asdict(point) for point in points]
        found = [row for row in self.rows if {name: row[name] for name in _SIZES} in sizes]
        return found if len(found) == len(sizes) else None

    def add(self, rows: Iterable[Row]) -> None:
        """Keep more rows; they are on the disk on return.

        Raises:
            OSError: The file cannot be written; it is as it was.
        """
        self.rows += rows
        text = "".join(json.dumps(line) + "\n" for line in (self.settings, *self.rows))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, lambda path: path.write_text(text))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = read_json_lines(path, "time_tasks")
    require(len(lines) > 0, "time_tasks", str(path), "a file of settings and rows", "none")
    check_rows("time_tasks", str(path), lines[1:])
    return lines


def check_rows(owner: str, source: str, rows: Sequence[Any]) -> None:
    """Raise ``ValueError`` unless all are rows of :func:`measure_depths`."""
    for row in rows:
        valid = isinstance(row, dict) and row.keys() >= _KEYS
        require(valid, owner, source, f"rows with {', '.join(sorted(_KEYS))}", row)


def by_task(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of each task, in the order in which the tasks come."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    return tasks


def size_text(rows: Sequence[Row]) -> str:
    """The sizes that a task's rows share, and M of each variant where it differs."""
    hidden_sizes = dict.fromkeys(row["hidden_size"] for row in rows)
    M = "/".join(map(str, sorted(hidden_sizes, reverse=True)))
    return f"M={M}, B={rows[0]['batch_size']}, T={rows[0]['length']}"


def task_table(task: str, rows: Sequence[Row]) -> Table:
    """A task's rows for people."""
    first = min(row["depth"] for row in rows)
    cells = [
        (
            row["variant"],
            str(row["depth"]),
            str(row["hidden_size"]),
            f"{row['median']:.4f}",
            "{:.4f} – {:.4f}".format(*row["quartiles"]),
            f"{row['to_first']:.2f}",
            f"{row['products']:.4f}",
            f"{row['to_products']:.2f}",
            f"{row['peak_bytes'] / 2**20:.1f}",
            str(len(row["milliseconds"])),
        )
        for row in rows
    ]
    header = ("variant", "L", "M", "ms", "quartiles", f"to L={first}", "products", "ratio")
    title = f"{task}: milliseconds per timestep per example, {size_text(rows)}"
    return Table(title, (*header, "peak MiB", "rounds"), cells, {})


def cost_of_depth(task: str, rows: Iterable[Row]) -> str:
    """What the greatest depth costs, in words."""
    by_variant = itertools.groupby(rows, key=lambda row: row["variant"])
    costs = []
    for variant, depths in by_variant:
        first, *_, last = sorted(depths, key=lambda row: row["depth"])
        cost = f"{last['to_first']:.1f}"
        named = f"L={last['depth']} costs {cost} times L={first['depth']}"
        costs.append(f"{variant} {cost}" if costs else f"{variant}: {named}")
    return f"{task}: {'; '.join(costs)}"

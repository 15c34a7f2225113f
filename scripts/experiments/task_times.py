"""Run times of the paper's panels: measured, kept, and told."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from benchmarking.products import bare_products
from benchmarking.tables import Table

from experiments.task_passes import Point, TaskPass, pass_products, predicted_bytes
from mlx_tlstm.checking.timing import Timing, measure, per_timestep_example
from mlx_tlstm.checks import require
from mlx_tlstm.files import read_json_lines, replace_text
from mlx_tlstm.training import memory_prediction

#: Values of M that a title lists.
_NAMED_SIZES = 4
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
        candidates[f"{point.depth} products"] = bare_products(pass_products(point))
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

    A line holds a row and with what it was taken; rows of other settings stay, and count as none.

    Args:
        path: The file; it need not be there.
        settings: With what rows are taken now, by name.

    Raises:
        ValueError: The file holds something else.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = dict(settings)
        self._lines = read_json_lines(path, "time_tasks") if path.exists() else []
        check_rows("time_tasks", str(path), self._lines)

    def of(self, points: Iterable[Point]) -> list[Row] | None:
        """The rows of these points, or ``None`` where one is missing."""
        kept = {
            tuple(line[name] for name in _SIZES): {k: line[k] for k in line if k != "settings"}
            for line in self._lines
            if line.get("settings") == self._settings
        }
        found = [kept.get(dataclasses.astuple(point)) for point in points]
        return None if None in found else found

    def add(self, rows: Iterable[Row]) -> None:
        """Keep more rows; they are on the disk on return.

        Raises:
            OSError: The file cannot be written; it is as it was.
        """
        self._lines += [row | {"settings": self._settings} for row in rows]
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self._path, text)


def require_memory(points: Iterable[Point]) -> None:
    """Refuse, before any work, sizes that the device has no memory for.

    Raises:
        click.UsageError: There are such; the largest is named.
    """
    needed, largest = max(
        ((predicted_bytes(point), point) for point in points), key=lambda pair: pair[0]
    )
    if needed > memory_prediction.limit():
        raise click.UsageError(
            f"{largest.task}, {largest.variant}, L={largest.depth} needs about "
            f"{memory_prediction.describe(needed)} but {memory_prediction.device_name()} has "
            f"{memory_prediction.describe(memory_prediction.limit())}; --quick takes smaller sizes"
        )


def measure_all(groups: list[list[Point]], kept: KeptRows, rounds: int, warmup: int) -> list[Row]:
    """The rows of all groups; those that are not kept yet are measured, and then kept.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was measured is kept.
    """
    rows = []
    for number, points in enumerate(groups, start=1):
        found = kept.of(points)
        if found is None:
            try:
                found = measure_depths(points, rounds, warmup)
            except KeyboardInterrupt:
                text = "Stopped; what was measured is kept, and the same command goes on"
                raise KeyboardInterrupt(text) from None
            kept.add(found)
            times = ", ".join(f"L={row['depth']} {row['median']:.4f}" for row in found)
            click.echo(
                f"{number} of {len(groups)}: {points[0].task}, {points[0].variant}: {times} ms",
                err=True,
            )
        rows += found
    return rows


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


def shared_sizes(rows: Sequence[Row]) -> str:
    """The sizes that a task's rows share, and M of each variant where it differs.

    Of more than a few M the least and the largest are named.
    """
    hidden_sizes = sorted({row["hidden_size"] for row in rows}, reverse=True)
    M = "/".join(map(str, hidden_sizes))
    if len(hidden_sizes) > _NAMED_SIZES:
        M = f"{hidden_sizes[-1]} to {hidden_sizes[0]}"
    return f"M={M}, B={rows[0]['batch_size']}, T={rows[0]['length']}"


def task_table(task: str, rows: Sequence[Row]) -> Table:
    """A task's rows for people."""
    first = min(row["depth"] for row in rows)
    cells = [
        {
            "variant": row["variant"],
            "L": str(row["depth"]),
            "M": str(row["hidden_size"]),
            "ms": f"{row['median']:.4f}",
            "quartiles": "{:.4f} – {:.4f}".format(*row["quartiles"]),
            f"to L={first}": f"{row['to_first']:.2f}",
            "products": f"{row['products']:.4f}",
            "ratio": f"{row['to_products']:.2f}",
            "peak MiB": f"{row['peak_bytes'] / 2**20:.1f}",
            "rounds": str(len(row["milliseconds"])),
        }
        for row in rows
    ]
    return Table(f"{task}: milliseconds per timestep per example, {shared_sizes(rows)}", cells)


def cost_of_depth(task: str, rows: Iterable[Row]) -> str:
    """What the greatest depth costs, in words."""
    by_variant = itertools.groupby(rows, key=lambda row: row["variant"])
    costs = []
    for variant, depths in by_variant:
        first, *more = sorted(depths, key=lambda row: row["depth"])
        if not more:
            continue
        last = more[-1]
        cost = f"{last['to_first']:.1f}"
        named = f"L={last['depth']} costs {cost} times L={first['depth']}"
        costs.append(f"{variant} {cost}" if costs else f"{variant}: {named}")
    return f"{task}: {'; '.join(costs)}"


def without_rounds(row: Row) -> Row:
    """A row as a line of a CSV file: quartiles and the number of rounds in place of lists."""
    low, high = row["quartiles"]
    line = {name: value for name, value in row.items() if not isinstance(value, list)}
    rounds = len(row["milliseconds"])
    return line | {"lower_quartile": low, "upper_quartile": high, "rounds": rounds}

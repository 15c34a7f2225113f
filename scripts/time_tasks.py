"""Time a forward and backward pass at the sizes of the paper's runtime panels (Fig. 3 to 5).

For each TASK (all five without one), each variant and depth: milliseconds per timestep per example,
beside those of the bare matrix products, measured in the same rounds. No data is needed. At the
paper's sizes it takes hours on a CPU; --quick takes smaller ones. A command that was stopped goes
on where it was; pictures and tables are written when all is measured.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
import mlx.core as mx
from benchmarking.options import BUSY_LOAD
from benchmarking.runtime_panels import draw_panels, write_times
from benchmarking.task_passes import Point, points_of, predicted_bytes
from benchmarking.task_times import (
    KeptRows,
    Row,
    by_task,
    cost_of_depth,
    measure_depths,
    task_table,
)

from mlx_tlstm import blas
from mlx_tlstm.checking.timing import machine
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.devices import device_option
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training import memory
from mlx_tlstm.training.loop import larger_cpu_cache
from mlx_tlstm.visualize import save_figure

ROUNDS, QUICK_ROUNDS = 10, 5
WARMUP = 1
QUICK_NOTE = (
    "The sizes are reduced: what an operation costs at any size weighs more, and the depth less, "
    "than at the paper's."
)


def require_memory(points: Iterable[Point]) -> None:
    """Refuse, before any work, sizes that the device has no memory for.

    Raises:
        click.UsageError: There are such; the largest is named.
    """
    needed, largest = max(
        ((predicted_bytes(point), point) for point in points), key=lambda pair: pair[0]
    )
    if needed > memory.limit():
        raise click.UsageError(
            f"{largest.task}, {largest.variant}, L={largest.depth} needs about "
            f"{memory.describe(needed)} but {memory.device_name()} has "
            f"{memory.describe(memory.limit())}; --quick takes smaller sizes"
        )


def measure_all(
    groups: list[list[Point]], kept: KeptRows, rounds: int, warmup: int = WARMUP
) -> list[Row]:
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


def write_csv(path: Path, rows: list[Row]) -> None:
    """Write the rows without their single rounds."""
    with path.open("w", newline="") as file:
        writer = None
        for row in rows:
            low, high = row["quartiles"]
            line = {name: value for name, value in row.items() if not isinstance(value, list)}
            line |= {
                "lower_quartile": low,
                "upper_quartile": high,
                "rounds": len(row["milliseconds"]),
            }
            if writer is None:
                writer = csv.DictWriter(file, list(line), lineterminator="\n")
                writer.writeheader()
            writer.writerow(line)


@click.command(cls=Command, keeps_results=True, help=__doc__)
@click.argument("tasks", nargs=-1, type=click.Choice(list(TASKS)), metavar="[TASK]...")
@click.option("--quick", is_flag=True, help="Smaller M, B and T: minutes on two CPU cores.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help=f"Timed passes of each; else {ROUNDS}, with --quick {QUICK_ROUNDS}.",
)
@device_option
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option(
    "--out",
    type=UserPath(file_okay=False),
    default=Path("runs/times"),
    show_default=True,
    help="Folder of times.jsonl, times.csv, times.json, times.png and times.svg.",
)
def main(
    tasks: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    markdown: bool,
    out: Path,
) -> None:
    mx.random.seed(0)
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    names = [name for name in TASKS if name in tasks or not tasks]
    groups = [points for name in names for points in points_of(name, quick)]
    require_memory(point for points in groups for point in points)
    here = machine()
    settings = dataclasses.asdict(here) | {"quick": quick, "rounds": rounds, "warmup": WARMUP}
    with clean_errors(bad_input=True):
        kept = KeptRows(out / "times.jsonl", settings)
    for name, (before, now) in kept.changes.items():
        click.echo(f"{name} is {now!r} and was {before!r}", err=True)
    if kept.changes:
        click.echo(f"Measuring anew; the times before are in {kept.put_aside}", err=True)
    load = os.getloadavg()[0]
    command = shlex.join(["python", "scripts/time_tasks.py", *sys.argv[1:]])
    facts = settings | {"load before": f"{load:.1f}", "command": command}
    mark = "- " if markdown else ""
    click.echo("\n".join(f"{mark}{name}: {value}" for name, value in facts.items()))
    if here.slow_blas:
        click.echo(f"\nThese figures are of the slow BLAS. {blas.hint()}.")
    if load > BUSY_LOAD:
        click.echo("\nOther work is running here: the times are longer than on a quiet machine.")
    with clean_errors(bad_input=False):
        with larger_cpu_cache():  # as in training
            rows = measure_all(groups, kept, rounds)
        write_csv(out / "times.csv", rows)
        write_times(out / "times.json", rows, facts)
        paths = [*save_figure(draw_panels(rows, facts), out / "times"), out / "times.csv"]
    for task, of_task in by_task(rows).items():
        click.echo("\n" + task_table(task, of_task).text(markdown))
    click.echo()
    for task, of_task in by_task(rows).items():
        click.echo(f"{mark}{cost_of_depth(task, of_task)}")
    if quick:
        click.echo(f"\n{QUICK_NOTE}")
    click.echo("\n" + "\n".join(f"{mark}{path}" for path in (*paths, out / "times.json")))


if __name__ == "__main__":
    main()

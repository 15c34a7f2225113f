"""Time a forward and backward pass at the sizes of the paper's runtime panels (Fig. 3 to 5).

For each TASK (all five without one), each variant and depth: milliseconds per timestep per example,
beside those of the bare matrix products, measured in the same rounds. No data is needed. At the
paper's sizes it takes hours on a CPU; --quick takes smaller ones. A command that was stopped goes
on where it was; pictures and tables are written when all is measured.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
import mlx.core as mx
from benchmarking.tables import csv_text, markdown_option, say_facts, say_list, say_tables
from experiments.options import variants_option
from experiments.paper import PAPER_TASKS, PAPER_VARIANTS
from experiments.pictures import draw_times
from experiments.task_passes import points_of
from experiments.task_times import (
    KeptRows,
    by_task,
    cost_of_depth,
    measure_all,
    require_memory,
    task_table,
    without_rounds,
)

from mlx_tlstm.checking.timing import machine
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.devices import device_option
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.training.loop import larger_cpu_cache
from mlx_tlstm.visualize import save_figure

ROUNDS, QUICK_ROUNDS = 10, 5
WARMUP = 1
QUICK_NOTE = (
    "The sizes are reduced: what an operation costs at any size weighs more, and the depth less, "
    "than at the paper's."
)


@click.command(cls=Command, keeps_results=True, help=__doc__)
@click.argument("tasks", nargs=-1, type=click.Choice(PAPER_TASKS), metavar="[TASK]...")
@variants_option
@click.option("--quick", is_flag=True, help="Smaller M, B and T: minutes on two CPU cores.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help=f"Timed passes of each; else {ROUNDS}, with --quick {QUICK_ROUNDS}.",
)
@device_option
@markdown_option
@click.option(
    "--out",
    type=UserPath(file_okay=False),
    default=Path("runs/times"),
    show_default=True,
    help="Folder of times.jsonl, times.csv, times.json, times.png and times.svg.",
)
def main(
    tasks: tuple[str, ...],
    variants: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    markdown: bool,
    out: Path,
) -> None:
    mx.random.seed(0)
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    names = [name for name in PAPER_TASKS if name in tasks or not tasks]
    of = variants or PAPER_VARIANTS
    groups = [points for name in names for points in points_of(name, quick, of)]
    require_memory(point for points in groups for point in points)
    settings = dataclasses.asdict(machine()) | {"quick": quick, "rounds": rounds, "warmup": WARMUP}
    with clean_errors(bad_input=True):
        kept = KeptRows(out / "times.jsonl", settings)
    facts = say_facts("time_tasks", markdown, quick=quick, rounds=rounds, warmup=WARMUP)
    with larger_cpu_cache():  # as in training
        rows = measure_all(groups, kept, rounds, WARMUP)
    paths = save_figure(draw_times(rows, facts), out / "times")
    lines = [without_rounds(row) for row in rows]
    document = json.dumps({"facts": facts, "rows": rows}, indent=2) + "\n"
    for ending, text in (("csv", csv_text(lines)), ("json", document)):
        paths.append(out / f"times.{ending}")
        paths[-1].write_text(text)
    say_tables([task_table(task, of_task) for task, of_task in by_task(rows).items()], markdown)
    click.echo()
    say_list([cost_of_depth(task, of_task) for task, of_task in by_task(rows).items()], markdown)
    if quick:
        click.echo(f"\n{QUICK_NOTE}")
    click.echo()
    say_list(paths, markdown)


if __name__ == "__main__":
    main()

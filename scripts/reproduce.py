"""Train what is behind one of the paper's tables or figures, and set it beside what is printed.

TARGET is a table (table-1, table-2, table-3), the performance panels of a figure (figure-3,
figure-4, figure-5; figure-4-lag starts from another forget bias), a comparison that is ours
(starts: ways to start training, on 10 symbols to memorize; symbols-20: 20 symbols, as many as in
the paper, from its start and from ours), or all.

The paper's scale is that of its Section 3 and Appendix D: days to months on a laptop. The laptop's
is hours on two CPU cores, and a day or two for what memorizes 10 symbols or more. The smoke scale
takes minutes and proves nothing but that all of it runs; on enwik8 its evaluation alone takes
longer, so give it a smaller --wikipedia-data.

A command that was stopped goes on where it was. Started several times at once, the processes share
the runs. OUT gets the run folders, TARGET.md, .csv, .json and, of figures, .png and .svg.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

import click
from benchmarking.report import Table
from experiments.options import (
    command_lines,
    data_by_task,
    data_options,
    say_written,
    warn_of_slow_blas,
)
from experiments.paper import TABLES
from experiments.pictures import draw_figure, draw_study
from experiments.planned import PlannedRun, check_runs, check_trainable, unsettled
from experiments.plans import FIGURES, SCALES, TARGETS, Request, departures, planned_runs
from experiments.report import Block, footnotes, report_lock, write_report
from experiments.results import read_result
from experiments.sweep import sweep
from experiments.tables import (
    Results,
    depth_tables,
    figure_table,
    printed_table,
    study_tables,
)
from matplotlib.figure import Figure

from mlx_tlstm.checks import require
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.paths import UserPath


def selected(runs: Sequence[PlannedRun], patterns: Sequence[str]) -> list[PlannedRun]:
    """Runs whose name matches one of the patterns; all where there is none."""
    return [
        run
        for run in runs
        if not patterns or any(fnmatch.fnmatchcase(run.name, pattern) for pattern in patterns)
    ]


def drawn(
    target: str, request: Request, results: Results, folder: Path
) -> tuple[list[Table], Figure | None]:
    """A target's tables, that with a row a run as the last, and its picture."""
    if target in TABLES:
        return [printed_table(target, request, results)], None
    if target in FIGURES:
        tables = [*depth_tables(target, request, results), figure_table(target, request, results)]
        return tables, draw_figure(target, request, results)
    return study_tables(target, request, results), draw_study(target, request, folder)


def report(
    target: str, request: Request, folder: Path, command: str, block: Block | None
) -> list[Table]:
    """Write what is there of a target, and return its tables."""
    with report_lock(folder):
        runs = planned_runs(target, request)
        results = {run.name: read_result(folder / run.name) for run in runs}
        tables, figure = drawn(target, request, results, folder)
        stem = folder / target
        notes = [*departures(target, request), *footnotes(results.values(), command)]
        text = write_report(stem, tables, figure, list(results.values()), notes)
        if block is not None:
            block.replace(text, stem.with_suffix(".png"))
    return tables


@click.command(cls=Command, keeps_results=True, help=__doc__)
@click.argument("target", type=click.Choice([*TARGETS, "all"]), metavar="TARGET")
@click.option(
    "--scale", type=click.Choice(SCALES), default="laptop", show_default=True, help="See above."
)
@click.option(
    "--out",
    type=UserPath(file_okay=False),
    help="Folder of the runs and the tables.  [default: results/SCALE]",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    help="Runs of each configuration, a seed each.  [default: 1, 2 or 3]",
)
@click.option(
    "--first-seed", type=click.IntRange(0), default=0, show_default=True, help="The first of them."
)
@click.option(
    "--only",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Train the runs of such a name, as in 'addition-*-L4-*'; repeatable.",
)
@click.option("--report", "report_only", is_flag=True, help="Train nothing; write what is there.")
@click.option(
    "--into",
    type=UserPath(dir_okay=False),
    help="A Markdown file to put the tables into, between <!-- begin TARGET SCALE --> and "
    "<!-- end TARGET SCALE -->.",
)
@data_options
def main(
    target: str,
    scale: str,
    out: Path | None,
    seeds: int | None,
    first_seed: int,
    patterns: tuple[str, ...],
    report_only: bool,
    into: Path | None,
    wikipedia_data: Path | None,
    mnist_data: Path | None,
) -> None:
    folder = out or Path("results", scale)
    targets = TARGETS if target == "all" else (target,)
    data = data_by_task(wikipedia_data, mnist_data)
    request = Request(scale, seeds, first_seed, data)
    command, shown = command_lines("reproduce")
    with clean_errors(bad_input=True):
        blocks = {t: Block(into, f"{t} {scale}") for t in targets} if into else {}
        planned = {t: planned_runs(t, request) for t in targets}
        everything = [run for runs in planned.values() for run in runs]
        check_runs(everything, folder, compare_data=not report_only)
        chosen = selected(everything, patterns)
        names = f"the name of a planned run, such as {everything[0].name!r}"
        require(bool(chosen), "reproduce", "only", names, ", ".join(patterns))
        if not report_only:
            check_trainable(unsettled(chosen, folder))
            warn_of_slow_blas()
    for name in targets:
        complete = True
        runs = selected(planned[name], patterns)
        if runs and not report_only:
            click.echo(f"\n{name}, {scale} scale")
            with clean_errors(bad_input=True):
                complete = sweep(runs, folder, command)
        with clean_errors(bad_input=False):
            tables = report(name, request, folder, shown, blocks.get(name))
        for table in tables[:-1] or tables:
            click.echo("\n" + table.text(markdown=False))
        say_written(folder / name, complete)


if __name__ == "__main__":
    main()

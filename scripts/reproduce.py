"""Train what is behind one of the paper's tables or figures, and set it beside what is printed.

TARGET is one of these:

\b
table-1, table-2, table-3   a table of the paper
figure-3, figure-4, figure-5
                  the performance panels of a figure
figure-4-lag      those of Fig. 4 with forget gates that start by the lag
tasks             the tasks, each with its own settings
starts            ways to start training, on 10 symbols to memorize
symbols-20        20 symbols, as many as in the paper, from its start and ours
addition-digits   numbers of 1 to 4 digits, from both starts
addition-15       numbers of 15 digits, as in the paper, from both starts
axes-wikipedia    a text, with two tensor axes and with one
axes-mnist        images pixel by pixel, with two tensor axes and with one
rivals-memorization, rivals-addition, rivals-mnist
                  others' networks and ours at equal parameters
all               all of these

The paper's scale is that of its Section 3 and Appendix D: days to months on a laptop. The laptop's
is hours on two CPU cores, a day or two for what memorizes 10 symbols or more, and for addition-15
weeks, or an hour on a large GPU. The smoke scale takes minutes and proves nothing but that all of
it runs; on enwik8 its evaluation alone takes longer, so give it a smaller --wikipedia-data.

A command that was stopped goes on where it was. Started several times at once, the processes share
the runs. OUT gets the run folders, TARGET.md, .csv, .json and, but for tables, .png and .svg.
"""

from __future__ import annotations

from pathlib import Path

import click
from benchmarking.tables import say_tables
from experiments.options import data_by_task, data_options, variants_option
from experiments.pages import Block, command_lines, write_target
from experiments.paper import PAPER_VARIANTS
from experiments.planned import check_runs, check_trainable, selected, unsettled
from experiments.plans import SCALES, TARGETS, Request, planned_runs
from experiments.sweep import sweep

from mlx_tlstm import blas
from mlx_tlstm.checking.timing import machine
from mlx_tlstm.checks import require
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.devices import backend_option, device_option
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.paths import UserPath


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
    help="Runs of each configuration, a seed each.  [default: 1, 2 or 3, as the target has it]",
)
@click.option(
    "--first-seed", type=click.IntRange(0), default=0, show_default=True, help="The first of them."
)
@click.option(
    "--only",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Train only runs whose names match, as in 'addition-*-L4-*'; repeatable. The names are "
    "those of the folders in OUT, such as addition-2d-tlstm-L4-s0 (the seed is behind the s).",
)
@variants_option
@click.option("--report", "report_only", is_flag=True, help="Train nothing; write what is there.")
@click.option(
    "--into",
    type=UserPath(dir_okay=False),
    help="A Markdown file to put the tables into, between <!-- begin TARGET SCALE --> and "
    "<!-- end TARGET SCALE -->.",
)
@data_options
@device_option
@backend_option
def main(
    target: str,
    scale: str,
    out: Path | None,
    seeds: int | None,
    first_seed: int,
    patterns: tuple[str, ...],
    variants: tuple[str, ...],
    report_only: bool,
    into: Path | None,
    backend: str | None,
    **data: Path | None,
) -> None:
    folder = out or Path("results", scale)
    targets = TARGETS if target == "all" else (target,)
    request = Request(scale, seeds, first_seed, data_by_task(data), variants or PAPER_VARIANTS)
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
            check_trainable(unsettled(chosen, folder), backend)
            if machine().slow_blas:
                click.echo(f"Warning: {blas.hint()}", err=True)
    for name in targets:
        complete = True
        runs = selected(planned[name], patterns)
        if runs and not report_only:
            click.echo(f"\n{name}, {scale} scale")
            with clean_errors(bad_input=True):
                complete = sweep(runs, folder, command, backend)
        tables = write_target(name, request, folder, shown, blocks.get(name))
        say_tables(tables[:-1] or tables, markdown=False)
        files = ", ".join(str(path) for path in sorted(folder.glob(f"{name}.*")))
        click.echo(f"\nWritten: {files}")
        if not complete:
            click.echo("Other processes train the rest; the last of them to end writes it anew.")


if __name__ == "__main__":
    main()

"""Train the paper's tasks one after the other, each into a run folder of its own.

Without TASK all five are trained. A command that was stopped goes on where it was; started several
times at once, the processes share the work. It ends with one table, also as CSV and JSON, and the
learning curves.
"""

from __future__ import annotations

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
from experiments.pictures import draw_curves
from experiments.planned import PlannedRun, check_runs, check_trainable, unsettled
from experiments.report import footnotes, report_lock, write_report
from experiments.results import RunResult, read_result
from experiments.sweep import sweep
from experiments.tables import SOLVED_COLUMNS, size_text, solved_cells, value_text
from tqdm import tqdm

from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks import TASKS

REPORT = "tasks"


def configuration(
    task: str, scale: str, seed: int, samples: int | None, data: dict[str, str]
) -> TrainingConfig:
    """A task's own settings, with ``samples`` at most."""
    config = TASKS[task].quick() if scale == "quick" else TASKS[task].paper()
    if samples is not None:
        samples = min(samples, config.samples or samples)
        config = config.replace(samples=samples, eval_every=min(samples, config.eval_every))
    return config.replace(seed=seed, data=data.get(task))


def tasks_table(results: list[RunResult]) -> Table:
    """A row a task."""
    rows = []
    for result in results:
        config = result.config
        network = f"{config.variant}, L={config.depth}, {size_text(config)}"
        best = "" if result.best is None else f"{value_text(result, result.best)} ({result.split})"
        test = result.state if result.test is None else value_text(result, result.test)
        rows.append(
            (
                config.task,
                f"{network}, {result.note}" if result.note else network,
                best,
                test,
                *solved_cells(result),
                f"{result.samples:,}",
                tqdm.format_interval(result.seconds),
                result.name,
            )
        )
    header = ("task", "network", "best", "test", *SOLVED_COLUMNS, "samples", "time", "run folder")
    return Table("Training on the paper's tasks", header, rows, {})


@click.command(cls=Command, keeps_results=True, help=__doc__)
@click.argument("tasks", nargs=-1, type=click.Choice(list(TASKS)), metavar="[TASK]...")
@click.option(
    "--scale",
    type=click.Choice(["quick", "paper"]),
    default="quick",
    show_default=True,
    help="Each task's settings for a laptop, or the paper's.",
)
@click.option(
    "--out",
    type=UserPath(file_okay=False),
    help="Folder of the runs and the table.  [default: runs/tasks-SCALE]",
)
@data_options
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--samples", type=click.IntRange(1), help="Training samples a task at most, to try it out."
)
def main(
    tasks: tuple[str, ...],
    scale: str,
    out: Path | None,
    wikipedia_data: Path | None,
    mnist_data: Path | None,
    seed: int,
    samples: int | None,
) -> None:
    folder = out or Path("runs", f"tasks-{scale}")
    data = data_by_task(wikipedia_data, mnist_data)
    command, shown = command_lines("train_tasks")
    warn_of_slow_blas()
    with clean_errors(bad_input=True):
        chosen = [task for task in TASKS if task in tasks] or list(TASKS)
        runs = [PlannedRun.of(configuration(task, scale, seed, samples, data)) for task in chosen]
        check_runs(runs, folder)
        check_trainable(unsettled(runs, folder))
        complete = sweep(runs, folder, command)
    with clean_errors(bad_input=False), report_lock(folder):
        found = [read_result(folder / run.name) for run in runs]
        results = [result for result in found if result is not None]
        table = tasks_table(results)
        curves = draw_curves([[folder / run.name] for run in runs])
        write_report(folder / REPORT, [table], curves, results, footnotes(results, shown))
        click.echo("\n" + table.text(markdown=False))
        say_written(folder / REPORT, complete)


if __name__ == "__main__":
    main()

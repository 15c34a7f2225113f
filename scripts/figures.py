"""Draw a figure of the paper, or learning curves, from training runs.

PATHS are run folders or folders of runs. figure-3 to figure-5 draw, for each task of the figure,
the best validation figure (of the algorithmic tasks the best test accuracy) over the depth: a line
a variant, the median and range of the seeds. With the times.json of time_tasks.py the run times
stand beside it. curves draws the metric of all runs over their training samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
from benchmarking.task_times import read_times
from experiments.alike import comparable, find_runs
from experiments.pictures import draw_figure
from experiments.plans import FIGURES
from experiments.results import RunResult, read_result

from mlx_tlstm.checks import require
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.training.runs import RunFolder
from mlx_tlstm.visualize import draw_learning_curves, save_figure

CURVES = "curves"


def runs_of(name: str, paths: Sequence[Path]) -> dict[str, list[RunResult]]:
    """The runs to draw for each task of a figure.

    Raises:
        ValueError: None is on one of its tasks, or none has an evaluation.
    """
    tasks = FIGURES[name].tasks
    results = [result for path in paths if (result := read_result(path)) is not None]
    fitting = [result for result in results if result.config.task in tasks]
    present = sorted({result.config.task for result in results})
    require(bool(fitting), "figures", "paths", f"of runs on {' or '.join(tasks)}", present)
    evaluated = [result for result in fitting if result.best is not None]
    require(bool(evaluated), "figures", "paths", "of runs with an evaluation", "none yet")
    chosen = {}
    for task in tasks:
        of_task = [result for result in evaluated if result.config.task == task]
        if of_task:
            chosen[task] = comparable(of_task)
            others = [result.name for result in of_task if result not in chosen[task]]
            _note("left out, as their settings are others", others)
            _note("not ended yet", [r.name for r in chosen[task] if not r.settled])
    _note("left out, as they have no evaluation yet", [r.name for r in fitting if r.best is None])
    return chosen


def _note(what: str, names: Sequence[str]) -> None:
    if names:
        count = f"{len(names)} run{'s' if len(names) > 1 else ''}"
        click.echo(f"{count} {what}: {', '.join(names)}", err=True)


@click.command(cls=Command, help=__doc__)
@click.argument(
    "figure", type=click.Choice([*(n for n in FIGURES if not FIGURES[n].changes), CURVES])
)
@click.argument("paths", nargs=-1, required=True, type=UserPath(exists=True))
@click.option(
    "--times",
    "times_path",
    type=UserPath(exists=True, dir_okay=False),
    help="times.json of time_tasks.py.",
)
@click.option(
    "--out",
    required=True,
    type=UserPath(),
    help="The pictures' path without ending.",
)
def main(figure: str, paths: tuple[Path, ...], times_path: Path | None, out: Path) -> None:
    if figure == CURVES and times_path is not None:
        raise click.UsageError("--times goes with figure-3, figure-4 and figure-5")
    with clean_errors(bad_input=True):
        folders = find_runs(paths)
        if figure == CURVES:
            drawn = draw_learning_curves([RunFolder.open(folder) for folder in folders])
        else:
            tasks = runs_of(figure, folders)
            times = None if times_path is None else read_times(times_path)
            missing = [task for task in tasks if times is not None and task not in times]
            require(
                not missing, "figures", "times", f"of {', '.join(missing)} too", str(times_path)
            )
            drawn = draw_figure(tasks, times)
    for path in save_figure(drawn, out):
        click.echo(path)


if __name__ == "__main__":
    main()

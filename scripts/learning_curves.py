"""Draw the learning curves of training runs: the task's metric over the training samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import matplotlib
from matplotlib import pyplot

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)
from mlx_tlstm.runs import RunFolder
from mlx_tlstm.tasks import TASKS

# Told apart in grey as well.
LINE_STYLES = ("-", "--", ":", "-.")
LABELS = {"accuracy": "accuracy (%)", "bpc": "bits per character"}


def draw(runs: list[RunFolder], metric: str, axes: pyplot.Axes) -> None:
    """Draw one line a run, labelled by the settings in which the runs differ."""
    settings = [dataclasses.asdict(run.config) for run in runs]
    differing = [name for name in settings[0] if len({str(s[name]) for s in settings}) > 1]
    scale = 100 if metric == "accuracy" else 1
    for number, (run, values) in enumerate(zip(runs, settings, strict=True)):
        records = run.read_metrics()
        label = ", ".join(f"{name.replace('_', ' ')} {values[name]}" for name in differing)
        axes.plot(
            [record["samples"] / 1000 for record in records],
            [scale * record[metric] for record in records],
            LINE_STYLES[number % len(LINE_STYLES)],
            label=label or str(run.path),
        )
    same = ("task", "length", "variant", "depth", "hidden_size")
    shared = [f"{n.replace('_', ' ')} {settings[0][n]}" for n in same if n not in differing]
    axes.set_title(", ".join(shared), fontsize="medium")
    axes.set_xlabel("training samples (thousands)")
    axes.set_ylabel(LABELS[metric])
    axes.set_xlim(left=0)
    if metric == "accuracy":
        axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


@click.command(help=__doc__)
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(runs: tuple[Path, ...], out: Path) -> None:
    try:
        folders = [RunFolder.open(run) for run in runs]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    metrics = {TASKS[run.config.task].metric for run in folders}
    if len(metrics) > 1:
        raise click.UsageError(f"RUNS must share one metric but have {sorted(metrics)}")
    empty = [str(run.path) for run in folders if not run.read_metrics()]
    if empty:
        raise click.UsageError(f"RUNS must hold an evaluation but {', '.join(empty)} hold none")
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    draw(folders, metrics.pop(), axes)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()

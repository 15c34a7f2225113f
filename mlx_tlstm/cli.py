"""The command line: ``mlx-tlstm train`` and ``mlx-tlstm evaluate``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mlx_tlstm import training
from mlx_tlstm.config import DTYPES, MEMORY_INITS
from mlx_tlstm.runs import WEIGHTS
from mlx_tlstm.tasks import TASKS, DataUnavailableError
from mlx_tlstm.training.progress import causality_note
from mlx_tlstm.variants import VARIANTS

#: What a shell reports for a program that Ctrl-C ended.
INTERRUPTED = 130


@contextlib.contextmanager
def _clean_errors(bad_input: bool) -> Iterator[None]:
    """Turn expected errors into one line and an exit code: 2 for bad input, 1 for a failure.

    Args:
        bad_input: Nothing runs yet but checks and loading, so that a ``ValueError`` or a missing
            file is the caller's.
    """
    callers = (ValueError, FileNotFoundError) if bad_input else ()
    try:
        yield
    except callers as error:
        raise click.UsageError(str(error)) from error
    except (DataUnavailableError, training.NonFiniteError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt as error:
        click.echo(str(error) or "Interrupted", err=True)
        sys.exit(INTERRUPTED)


@click.group()
def main() -> None:
    """Tensorized LSTMs for MLX."""


@main.command(
    help=f"Train a network on TASK and save the run in a folder. TASK is one of "
    f"{', '.join(TASKS)}; the first if left out.",
    epilog="Options left out take the task's quick setting, or the paper's with --paper.",
)
@click.argument("task", type=click.Choice(list(TASKS)), default=next(iter(TASKS)), metavar="[TASK]")
@click.option(
    "--variant",
    type=click.Choice(list(VARIANTS)),
    metavar="NAME",
    help=f"Network configuration: {', '.join(VARIANTS)}.",
)
@click.option("--depth", type=int, help="L, steps from an input to its output.")
@click.option("--hidden-size", type=int, help="M, channels at each tensor location.")
@click.option(
    "--kernel-size", type=int, help="K on every tensor axis, 2 or more; else the variant's."
)
@click.option(
    "--memory-init",
    type=click.Choice(MEMORY_INITS),
    help="Where the memory convolution starts: even over its taps, shifting, or holding.",
)
@click.option("--batch-size", type=int, help="Samples in a training step.")
@click.option(
    "--length",
    type=int,
    help="Size of the task: digits, symbols, characters a chunk, steps an image.",
)
@click.option("--learning-rate", type=float, help="Adam's step size.")
@click.option(
    "--samples", type=int, help="Training samples in all; with --epochs the fewer of the two."
)
@click.option("--epochs", type=int, help="Passes over a finite training set.")
@click.option("--seed", type=int, help="Seeds weights, data and order.")
@click.option("--forget-bias", type=float, help="Starting bias of the forget gate.")
@click.option("--clip-norm", type=float, help="Largest gradient norm; 0 turns clipping off.")
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="Type of weights; Adam keeps float32 copies."
)
@click.option(
    "--recompute",
    is_flag=True,
    default=None,
    help="Compute activations anew in the backward pass: less memory, more time.",
)
@click.option("--eval-every", type=int, help="Training samples between evaluations.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A text file for wikipedia, a folder of IDX or parquet files for mnist and pmnist; "
    "else the data is downloaded.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the run, without one in it; else runs/TASK-VARIANT-TIME.",
)
@click.option("--paper", is_flag=True, help="Start from the paper's settings.")
def train(task: str, data: Path | None, out: Path | None, paper: bool, **options: Any) -> None:
    given = {name: value for name, value in options.items() if value is not None}
    if data is not None:
        given["data"] = str(data.absolute())  # the run can then be evaluated from any folder
    with _clean_errors(bad_input=True):
        config = (TASKS[task].paper() if paper else TASKS[task].quick()).replace(**given)
        if out is None:
            moment = time.strftime("%Y%m%d-%H%M%S")
            out = Path("runs", f"{config.task}-{config.variant}-{moment}")
        trainer, run = training.prepare(config, out)
    with _clean_errors(bad_input=False):
        result = training.train(trainer, run, [training.Progress()])
    for name, record in (("best", result.best), ("final", result.last)):
        click.echo(
            f"{name}: {training.format_metrics(record)} ({record['split']}, after "
            f"{record['samples']:,} samples)"
        )
    remarks = ", ".join(filter(None, ("best weights", trainer.task.evaluation_note)))
    click.echo(f"test: {training.format_metrics(result.test)} ({remarks})")
    click.echo(f"{'solved' if result.solved else 'done'} in {result.seconds:,.1f} s; run: {out}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["test", "validation"]), default="test")
@click.option("--weights", type=click.Choice(WEIGHTS), default=WEIGHTS[0])
def evaluate(run: Path, split: str, weights: str) -> None:
    """Print the metrics of the saved RUN, the folder of a training run."""
    with _clean_errors(bad_input=True):
        folder, task, model = training.load_run(run, weights)
    with _clean_errors(bad_input=False):
        metrics = training.evaluate(model, task, split)
    note = causality_note(folder.config, task)
    if note:
        click.echo(note, err=True)
    config = folder.config
    remarks = (config.task, config.variant, f"{weights} weights", task.evaluation_note)
    click.echo(
        f"{split}: {training.format_metrics(metrics)}, loss {metrics['loss']:.4f} "
        f"({', '.join(filter(None, remarks))})"
    )

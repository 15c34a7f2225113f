"""What the commands that sweep share: the user's data, and words for a terminal."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import click

from experiments.report import shown_command
from mlx_tlstm import blas
from mlx_tlstm.checking.timing import machine
from mlx_tlstm.commands.paths import UserPath


def data_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--wikipedia-data`` and ``--mnist-data`` to a click command."""
    existing = UserPath(exists=True)
    wikipedia = click.option(
        "--wikipedia-data", type=existing, help="A text file; else enwik8 is downloaded."
    )
    mnist = click.option(
        "--mnist-data",
        type=existing,
        help="A folder of IDX or parquet files; else MNIST is downloaded.",
    )
    return wikipedia(mnist(command))


def data_by_task(wikipedia: Path | None, mnist: Path | None) -> dict[str, str]:
    """The user's own data by task, as paths that hold from any folder."""
    given = {"wikipedia": wikipedia, "mnist": mnist, "pmnist": mnist}
    return {task: str(path.absolute()) for task, path in given.items() if path is not None}


def command_lines(script: str) -> tuple[str, str]:
    """The command that runs, to be typed again, and fit to be published."""
    arguments = [f"scripts/{script}.py", *sys.argv[1:]]
    return shlex.join(["python", *arguments]), shown_command(arguments)


def warn_of_slow_blas() -> None:
    """Say on standard error what would make training faster, where something would."""
    if machine().slow_blas:
        click.echo(f"Warning: {blas.hint()}", err=True)


def say_written(stem: Path, complete: bool) -> None:
    """Say where a report is, and whether other processes are still at work on it."""
    files = ", ".join(str(path) for path in sorted(stem.parent.glob(f"{stem.name}.*")))
    click.echo(f"\nWritten: {files}")
    if not complete:
        click.echo("Other processes train the rest; the last of them to end writes it anew.")

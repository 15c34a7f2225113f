"""The user's own data on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click

from mlx_tlstm.commands.paths import UserPath

#: By option, the tasks that read it and its help.
OPTIONS = {
    "wikipedia_data": (("wikipedia",), "A text file; else enwik8 is downloaded."),
    "mnist_data": (
        ("mnist", "pmnist"),
        "A folder of IDX or parquet files; else MNIST is downloaded.",
    ),
}


def data_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a click command."""
    for name, (_, words) in reversed(OPTIONS.items()):
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, type=UserPath(exists=True), help=words)(command)
    return command


def data_by_task(given: Mapping[str, Path | None]) -> dict[str, str]:
    """The values of the options by task, as paths that hold from any folder."""
    return {
        task: str(path.absolute())
        for name, path in given.items()
        if path is not None
        for task in OPTIONS[name][0]
    }

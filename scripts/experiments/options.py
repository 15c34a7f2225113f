"""Options that scripts share: the user's own data, and the variants to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click

from mlx_tlstm import VARIANTS
from mlx_tlstm.commands.paths import UserPath

#: By option, the tasks that read it and its help.
OPTIONS = {
    "wikipedia_data": (("wikipedia",), "A text file; else enwik8 is downloaded."),
    "mnist_data": (
        ("mnist", "pmnist"),
        "A folder of IDX or parquet files; else MNIST is downloaded.",
    ),
}


#: Of a click command, which gets ``variants``, a tuple.
variants_option = click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(list(VARIANTS)),
    metavar="NAME",
    help="Compare these in the figures' panels, in place of the paper's seven; repeatable. One of "
    "others' networks gets about as many parameters as ours.",
)


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

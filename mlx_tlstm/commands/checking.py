"""``mlx-tlstm check``: whether this device computes right, and what is quickest on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mlx_tlstm.checking.survey import SECONDS, SECONDS_ON_CPU, Survey
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.numbers import Seconds
from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.files import json_text, replace_text

JSON_NAME = "mlx-tlstm-check.json"


@click.command(cls=Command, keeps_results=True)
@click.option(
    "--json",
    "json_path",
    type=UserPath(dir_okay=False),
    default=JSON_NAME,
    show_default=True,
    help="File for all results, written as they become known. It names no user or host, and "
    "folders only where an error does, with ~ for the home folder.",
)
@click.option(
    "--seconds",
    type=Seconds(),
    help="Begin no new part of the check after so many seconds.",
    show_default=f"{SECONDS:.0f} with a GPU, {SECONDS_ON_CPU:.0f} on a CPU",
)
def check(json_path: Path, seconds: float | None) -> None:
    """Check this device: are the kernels right, and what is quickest?

    Layers and single kernels are compared with plain operations on the CPU, and these with the
    paper's equations. Kernels are timed beside plain operations, and the tasks' settings on each
    device. After what fails the check goes on. The last line is the verdict. If the check hangs or
    is ended, the file says what was running.

    The exit code is 0 when all that could be checked is right.
    """

    def save(record: dict[str, Any]) -> None:
        replace_text(json_path, json_text(record, indent=2))

    with clean_errors(bad_input=True):
        save({})  # a path that cannot be written is said before any work
    right = Survey(click.echo, save, seconds).run()
    sys.exit(0 if right else 1)

"""Draw the learning curves of the runs in the folders RUN: their metric over their samples."""

from __future__ import annotations

from pathlib import Path

import click

from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.visualize import draw_learning_curves, save_figure


@click.command(cls=Command, help=__doc__)
@click.argument("runs", nargs=-1, required=True, type=UserPath(exists=True), metavar="RUN...")
@click.option("--out", required=True, type=UserPath(), help="The pictures' path without ending.")
def main(runs: tuple[Path, ...], out: Path) -> None:
    with clean_errors(bad_input=True):
        paths = save_figure(draw_learning_curves(runs), out)
    for path in paths:
        click.echo(path)


if __name__ == "__main__":
    main()

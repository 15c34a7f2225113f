"""The type of all paths on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlx_tlstm.paths import to_path


class UserPath(click.Path):
    """``click.Path`` as a :class:`pathlib.Path`: ``~`` is the home folder, and none is empty.

    A shell leaves the ``~`` of ``--out=~/run`` to the command.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        owner = ctx.info_name if ctx is not None and ctx.info_name else "command"
        try:
            path = to_path(owner, param.name if param is not None else "path", value)
        except ValueError as error:
            raise click.UsageError(str(error), ctx) from error
        return super().convert(path, param, ctx)

"""The type of all paths on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlx_tlstm.files import to_path


class UserPath(click.Path):
    """A path on the command line: ``~`` is the home folder, and the empty path is refused.

    A shell does not replace the ``~`` in ``--out=~/run``.
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


class OutputFile(UserPath):
    """A file to write at the end, whose folder has to be there from the start."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = super().convert(value, param, ctx)
        if not path.parent.is_dir():
            self.fail(
                f"there is no folder {str(path.parent)!r} to write {path.name!r} in", param, ctx
            )
        return path

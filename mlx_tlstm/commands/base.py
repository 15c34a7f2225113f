"""The classes of all commands and scripts: click's, but a failing output cannot end them."""

from __future__ import annotations

import sys
from typing import Any

import click

from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.streams import SafeStream, safe_streams


class _SafeMain(click.Command):
    def main(self, *arguments: Any, **settings: Any) -> Any:
        with safe_streams():
            return super().main(*arguments, **settings)

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        with clean_errors(bad_input=False):  # --help is printed here
            return super().make_context(*arguments, **settings)


class Command(_SafeMain):
    """A command that reports an error in one line, and that survives a closed standard error.

    Args:
        keeps_results: Whether its results are in files. Then it goes on when nobody can read its
            output any more. Other commands end, without a message if the reader of a pipe is gone.
    """

    def __init__(self, *arguments: Any, keeps_results: bool = False, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.keeps_results = keeps_results

    def invoke(self, context: click.Context) -> Any:
        if isinstance(sys.stdout, SafeStream):
            sys.stdout.forgiving = self.keeps_results
        with clean_errors(bad_input=False):
            return super().invoke(context)


class Group(_SafeMain, click.Group):
    """A command with subcommands, each a :class:`Command`."""

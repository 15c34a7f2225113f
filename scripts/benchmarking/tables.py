"""Tables of figures as text, Markdown, CSV and JSON, and where the figures were taken."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from mlx_tlstm import blas
from mlx_tlstm.checking.timing import Timing, machine
from mlx_tlstm.commands.paths import OutputFile

NOT_RUN = "not run"
#: Mean number of running processes over the last minute above which a machine is not quiet.
BUSY_LOAD = 0.5

#: What every command that prints a table takes.
markdown_option = click.option("--markdown", is_flag=True, help="Print Markdown.")
#: What every command takes that writes its measurements.
json_option = click.option(
    "--json", "json_path", type=OutputFile(), help="A file to write each measurement to, as JSON."
)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a title.

    Args:
        title: What the table is of.
        rows: The cells of each row by their column; all rows have the same columns.
        timings: Every measurement behind it, in groups.
    """

    title: str
    rows: Sequence[Mapping[str, str]]
    timings: Mapping[str, Mapping[str, Timing]] = dataclasses.field(default_factory=dict)

    @property
    def header(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.rows[0])

    def text(self, markdown: bool) -> str:
        """Title and aligned columns, with Markdown's rules if asked for."""
        return (f"### {self.title}\n\n" if markdown else f"{self.title}\n") + self.body(markdown)

    def body(self, markdown: bool) -> str:
        """What is below the title."""
        cells = [self.header, *(tuple(row.values()) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        between, edge = (" | ", "| ") if markdown else ("  ", "")

        def line(cells: Sequence[str]) -> str:
            aligned = [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]
            return edge + between.join(aligned) + edge[::-1]

        if markdown:
            cells.insert(
                1, tuple("-" * (w - 1) + (":" if i else "-") for i, w in enumerate(widths))
            )
        return "\n".join(map(line, cells))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows by column as CSV with a header."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def say_facts(script: str, markdown: bool, busy: str = "", **more: Any) -> dict[str, Any]:
    """Print where the figures are taken and what may spoil them, and return the facts.

    Args:
        script: The command's name.
        markdown: Whether to print Markdown.
        busy: What to say where other work is running.
        more: Facts beyond the machine's.
    """
    here, load = machine(), os.getloadavg()[0]
    command = shlex.join(["python", f"scripts/{script}.py", *sys.argv[1:]])
    facts = dataclasses.asdict(here) | more | {"load before": f"{load:.1f}", "command": command}
    say_list((f"{name}: {value}" for name, value in facts.items()), markdown)
    if here.slow_blas:
        click.echo(f"\nThese figures are of the slow BLAS. {blas.hint()}.")
    if load > BUSY_LOAD:
        busy = busy or "the times are longer than on a quiet machine."
        click.echo(f"\nOther work is running here: {busy}")
    return facts


def say_list(lines: Iterable[object], markdown: bool) -> None:
    """Print lines, as a list where Markdown is asked for."""
    click.echo("\n".join(f"- {line}" if markdown else str(line) for line in lines))


def say_tables(tables: Sequence[Table], markdown: bool) -> None:
    """Print tables, an empty line above each."""
    for table in tables:
        click.echo("\n" + table.text(markdown))


@contextlib.contextmanager
def tables_told(
    markdown: bool, json_path: Path | None = None, facts: Mapping[str, Any] | None = None
) -> Iterator[list[Table]]:
    """A list of tables to fill inside, printed and written at the end.

    That is also where Ctrl-C or an error comes before it: what was measured is not lost.
    """
    tables: list[Table] = []
    try:
        yield tables
    finally:
        measured = [table for table in tables if table.rows]
        say_tables(measured, markdown)
        if measured:  # an earlier file is worth more than none of this
            write_timings(json_path, facts or {}, measured)


def grow(tables: list[Table], growing: Iterable[Sequence[Table]]) -> None:
    """Add tables that each of ``growing`` has more rows of."""
    start = len(tables)
    for so_far in growing:
        tables[start:] = so_far


def write_timings(path: Path | None, facts: Mapping[str, Any], tables: Sequence[Table]) -> None:
    """Write the facts and every measurement behind the tables as JSON, where a path is given."""
    if path is None:
        return
    timings = {
        title: {name: timing.as_dict() for name, timing in group.items()}
        for table in tables
        for title, group in table.timings.items()
    }
    path.write_text(json.dumps({"facts": facts, "timings": timings}, indent=2))


_MEASURED_BY = {
    "rounds": "Timings of each thing that is compared; they take turns.",
    "warmup": "Runs of each thing before its first timing.",
    "launches": "Launches of a kernel that are timed together.",
    "inputs": "Inputs of a stream that are timed together.",
}


def measured_by(**defaults: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add numbers of rounds and the like, with these defaults, to a click command."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for name, default in defaults.items():
            settings = {"default": default, "show_default": True, "help": _MEASURED_BY[name]}
            least = click.IntRange(0 if name == "warmup" else 1)
            command = click.option(f"--{name}", type=least, **settings)(command)
        return command

    return add

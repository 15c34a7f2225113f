"""Where a target's tables and picture go: files of its name, and a place in a Markdown file."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking.tables import Table, csv_text
from filelock import FileLock
from matplotlib.figure import Figure

from experiments.pictures import target_picture
from experiments.plans import Request, departures, planned_runs
from experiments.report import target_tables, tasks_shown
from experiments.results import RunResult, read_result
from mlx_tlstm.checking.timing import machine
from mlx_tlstm.checks import require
from mlx_tlstm.files import replace_text
from mlx_tlstm.visualize import save_figure

#: Locked by the process that writes.
LOCK = ".report"


class Block:
    """The place of a target at a scale in a Markdown file, between two comments.

    Args:
        path: The file.
        name: Target and scale, as in ``figure-4 laptop``.

    Raises:
        ValueError: There is no such file, or not each comment once and in order.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._comments = [f"<!-- {word} {name} -->" for word in ("begin", "end")]
        self._around()

    def replace(self, text: str, stem: Path) -> None:
        """Put ``text`` there; the picture and the CSV that it links are copied beside the file.

        Args:
            text: Markdown of :func:`write_report`.
            stem: That of the files beside which it was written.
        """
        before, after = self._around()
        begin, end = self._comments
        for ending in ("png", "csv"):
            link, name = f"{stem.name}.{ending}", f"{self._name.replace(' ', '-')}.{ending}"
            if f"]({link})" in text:
                shutil.copyfile(stem.with_name(link), self._path.parent / name)
                text = text.replace(f"]({link})", f"]({name})")
        replace_text(self._path, f"{before}{begin}\n\n{text}\n{end}{after}")

    def _around(self) -> tuple[str, str]:
        """What comes before and after."""
        owner, argument, path = "reproduce", "into", str(self._path)
        require(self._path.is_file(), owner, argument, "an existing file", path)
        text, (begin, end) = self._path.read_text(encoding="utf-8"), self._comments
        found = text.count(begin) == text.count(end) == 1 and text.index(begin) < text.index(end)
        require(found, owner, argument, f"a file with one '{begin}' and then one '{end}'", path)
        return text.partition(begin)[0], text.partition(end)[2]


def write_target(
    target: str, request: Request, folder: Path, command: str, block: Block | None
) -> list[Table]:
    """Write what is there of a target, and return its tables.

    One process at a time reads the runs and writes: of several that share a sweep the last to end
    has then also written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        results = {
            run.name: read_result(folder / run.name) for run in planned_runs(target, request)
        }
        tables = target_tables(target, request, results)
        figure = target_picture(target, request, results, folder)
        stem = folder / target
        shown = tasks_shown(target, request, results)
        notes = [*departures(target, request, shown), *footnotes(results.values(), command)]
        text = write_report(stem, tables, figure, results.values(), notes)
        if block is not None:
            block.replace(text, stem)
    return tables


def command_lines(script: str) -> tuple[str, str]:
    """The command that runs, to be typed again, and fit to be published."""
    arguments = [f"scripts/{script}.py", *sys.argv[1:]]
    return shlex.join(["python", *arguments]), shown_command(arguments)


def shown_command(arguments: Sequence[str]) -> str:
    """A command line fit to be published: of absolute paths the last part alone."""
    return shlex.join(["python", *map(_without_folder, arguments)])


def _without_folder(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)


def footnotes(results: Iterable[RunResult | None], command: str) -> list[str]:
    """Where, at which commits and by which command the figures came about."""
    ran = [result for result in results if result is not None]
    commits: dict[str, dict[str, None]] = {}
    for result in ran:
        for one in result.machines:
            commits.setdefault(_machine_text(one), {})[str(one["commit"])] = None
    lines = [f"Trained on {m}; commit {', '.join(c)}." for m, c in commits.items()]
    unknown = sum(not result.machines for result in ran)
    if unknown:
        lines.append(f"Where {unknown} of the {len(ran)} runs were trained was not recorded.")
    return [*lines, f"Written by `{command}` at commit {machine().commit}."]


def _machine_text(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['processor']}, {facts['cores']} cores, MLX {facts['mlx']} on {facts['device']}, "
        f"{facts['blas']}, Python {facts['python']}, {facts['system']}"
    )


def write_report(
    stem: Path,
    tables: Sequence[Table],
    figure: Figure | None,
    results: Iterable[RunResult | None],
    notes: Sequence[str],
) -> str:
    """Write ``stem`` with ``.md``, ``.csv``, ``.json`` and, of a figure, ``.png`` and ``.svg``.

    Args:
        stem: Folder and name.
        tables: For people; the last one is the CSV, and a link to it where others come before.
        figure: The picture.
        results: All runs behind it, for programs.
        notes: Lines to stand below.

    Returns:
        The Markdown.
    """
    last, parts = tables[-1], []
    if figure is not None:
        save_figure(figure, stem)
        parts.append(f"![{last.title}]({stem.name}.png)")
    parts += [table.text(markdown=True) for table in tables[:-1]]
    link = f"[{last.title}]({stem.name}.csv): {len(last.rows)} rows."
    parts.append(link if tables[:-1] else last.text(markdown=True))
    parts.append("\n".join(f"- {note}" for note in notes))
    values = {
        "title": last.title,
        "notes": list(notes),
        "rows": last.rows,
        "runs": [result.as_json() for result in results if result is not None],
    }
    texts = {
        "md": "\n\n".join(parts) + "\n",
        "csv": csv_text(last.rows),
        "json": json.dumps(values, indent=2) + "\n",
    }
    for ending, text in texts.items():
        replace_text(stem.with_name(f"{stem.name}.{ending}"), text)
    return texts["md"]

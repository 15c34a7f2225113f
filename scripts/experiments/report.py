"""What a target comes to, as files: Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking.report import Table
from matplotlib.figure import Figure

from experiments.results import RunResult
from mlx_tlstm.checking.timing import machine
from mlx_tlstm.checks import require
from mlx_tlstm.files import replace_file
from mlx_tlstm.visualize import save_figure

_LOCK = ".report"


@contextlib.contextmanager
def report_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time read the runs and write what they come to.

    Of several that share a sweep the last to end has then also written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def shown_command(arguments: Sequence[str]) -> str:
    """A command line fit to be published: of absolute paths the last part alone."""
    return shlex.join(["python", *map(_without_folder, arguments)])


def _without_folder(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)


def footnotes(results: Iterable[RunResult | None], command: str) -> list[str]:
    """Where, at which commits and by which command the figures came about."""
    ran = [result for result in results if result is not None]
    commits: dict[str, list[str]] = {}
    for result in ran:
        for one in result.machines:
            known = commits.setdefault(_machine_text(one), [])
            if (commit := str(one["commit"])) not in known:
                known.append(commit)
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
    results: Sequence[RunResult | None],
    notes: Sequence[str],
) -> str:
    """Write ``stem`` with ``.md``, ``.csv``, ``.json`` and, of a figure, ``.png`` and ``.svg``.

    Args:
        stem: Folder and name.
        tables: For people; the last one is also the CSV.
        figure: The picture.
        results: All runs behind it, for programs.
        notes: Lines to stand below.

    Returns:
        The Markdown.
    """
    parts = []
    if figure is not None:
        save_figure(figure, stem)
        parts.append(f"![{tables[-1].title}]({stem.name}.png)")
    parts += [table.text(markdown=True) for table in tables]
    parts.append("\n".join(f"- {note}" for note in notes))
    text = "\n\n".join(parts) + "\n"
    rows = tables[-1]
    values = {
        "title": rows.title,
        "notes": list(notes),
        "rows": [dict(zip(rows.header, row, strict=True)) for row in rows.rows],
        "runs": [result.as_json() for result in results if result is not None],
    }
    document = json.dumps(values, indent=2) + "\n"
    for ending, write in (
        ("md", lambda path: path.write_text(text)),
        ("csv", lambda path: _write_csv(path, rows)),
        ("json", lambda path: path.write_text(document)),
    ):
        replace_file(stem.with_name(f"{stem.name}.{ending}"), write)
    return text


def _write_csv(path: Path, table: Table) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([table.header, *table.rows])


class Block:
    """The place of a target at a scale in a Markdown file, between two comments.

    Args:
        path: The file.
        name: Target and scale, as in ``figure-4 laptop``.

    Raises:
        ValueError: There is no such file, or not each comment once and in order.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._begin, self._end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        self._split()

    def replace(self, text: str, picture: Path) -> None:
        """Put ``text`` there; a picture that it shows is copied beside the file.

        Args:
            text: Markdown of :func:`write_report`.
            picture: The PNG, which need not exist.
        """
        before, after = self._split()
        if picture.exists():
            name = "-".join(self._begin.split()[2:4]) + picture.suffix
            shutil.copyfile(picture, self._path.parent / name)
            text = text.replace(f"]({picture.name})", f"]({name})")
        whole = f"{before}{self._begin}\n\n{text}\n{self._end}{after}"
        replace_file(self._path, lambda path: path.write_text(whole))

    def _split(self) -> tuple[str, str]:
        """What comes before and after."""
        owner, argument = "reproduce", "into"
        require(self._path.is_file(), owner, argument, "an existing file", str(self._path))
        text = self._path.read_text()
        for comment in (self._begin, self._end):
            once = text.count(comment) == 1
            require(once, owner, argument, f"a file with one '{comment}'", str(self._path))
        before, rest = text.split(self._begin)
        ordered = self._end in rest
        require(ordered, owner, argument, f"a file with '{self._begin}' first", str(self._path))
        return before, rest.split(self._end)[1]

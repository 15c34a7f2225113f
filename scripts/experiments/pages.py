"""Where a target's tables and picture go: files of its name, and a place in a Markdown file."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarking.tables import Table
from filelock import FileLock

from experiments.pictures import target_picture
from experiments.plans import Request, departures, planned_runs
from experiments.report import footnotes, target_tables, write_report
from experiments.results import read_result
from mlx_tlstm.checks import require
from mlx_tlstm.files import replace_text

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

    def replace(self, text: str, picture: Path) -> None:
        """Put ``text`` there; a picture that it shows is copied beside the file.

        Args:
            text: Markdown of :func:`write_report`.
            picture: The PNG, which need not exist.
        """
        before, after = self._around()
        begin, end = self._comments
        if picture.exists():
            name = self._name.replace(" ", "-") + picture.suffix
            shutil.copyfile(picture, self._path.parent / name)
            text = text.replace(f"]({picture.name})", f"]({name})")
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
        notes = [*departures(target, request), *footnotes(results.values(), command)]
        text = write_report(stem, tables, figure, results.values(), notes)
        if block is not None:
            block.replace(text, stem.with_suffix(".png"))
    return tables

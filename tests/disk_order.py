"""What is synced to the disk and renamed, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class DiskOrder:
    """Records syncs and renames from now on.

    A killed process loses nothing that it wrote, synced or not: only a machine that goes down does.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._found: list[tuple[str, int, int]] = []
        fsync = os.fsync

        def synced(descriptor: int) -> None:
            self._add("sync", os.fstat(descriptor))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", synced)
        for name in ("rename", "replace"):
            self._record_renames(name, monkeypatch)

    def _record_renames(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        rename = getattr(os, name)

        def renamed(source: Path, target: Path) -> None:
            self._add("rename", os.stat(source))
            rename(source, target)

        monkeypatch.setattr(os, name, renamed)

    def _add(self, event: str, status: os.stat_result) -> None:
        self._found.append((event, status.st_ino, status.st_size))

    def of(self, folder: Path) -> list[str]:
        """The events in order, as ``sync a/b``, by the names that paths in ``folder`` have now.

        Paths elsewhere are left out; a sync of less than what a file holds counts for nothing.
        """
        paths = {path.stat().st_ino: path for path in (folder, *folder.rglob("*"))}
        return [
            f"{event} {path.relative_to(folder)}"
            for event, number, size in self._found
            if (path := paths.get(number)) and (path.is_dir() or size == path.stat().st_size)
        ]

"""Checkpoints on the disk: written whole, checked before they are used, removed when old."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlx_tlstm.files import TEMPORARY, json_text, naming, sync

MANIFEST_FILE = "manifest.json"
#: Raised with each change that older programs cannot read.
FORMAT = 1
_NAME = re.compile(r"(\d{6,})-step-(\d{9,})")


class CheckpointError(ValueError):
    """A checkpoint or a saved model of the run is damaged, or none can be used."""


class NewerFormatError(CheckpointError):
    """A checkpoint was written by a later version."""


@contextlib.contextmanager
def damage_refused() -> Iterator[None]:
    """What is wrong with a file of the run, as a :class:`CheckpointError`."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(str(error)) from error


@dataclasses.dataclass(frozen=True, order=True)
class Checkpoint:
    """One checkpoint. Of two, the one that was written later compares as greater.

    Attributes:
        number: Counts the checkpoints of a run in the order they were written.
        step: Training steps done by then.
        path: Its folder.
    """

    number: int
    step: int
    path: Path

    def verify(self) -> None:
        """Compare every file with the manifest.

        Raises:
            CheckpointError: A file is missing, torn or altered.
            PermissionError: A file may not be read, which says nothing about it.
        """
        for name, (size, digest) in self._manifest().items():
            path = self.path / name
            try:
                same = path.stat().st_size == size and _digest(path) == digest
            except PermissionError:
                raise
            except OSError as error:
                raise CheckpointError(f"{name} cannot be read ({error.strerror})") from error
            if not same:
                raise CheckpointError(f"{name} is not the file that {MANIFEST_FILE} describes")

    def files(self) -> set[str]:
        """Names of the checkpoint's files without the manifest."""
        return set(self._manifest())

    def _manifest(self) -> dict[str, tuple[int, str]]:
        try:
            manifest = json.loads((self.path / MANIFEST_FILE).read_bytes())
            if manifest["format"] > FORMAT:
                raise NewerFormatError(
                    f"[RunOnDisk] {str(self.path)!r} must be of format {FORMAT} but is of "
                    f"{manifest['format']!r}: go on with the version of mlx_tlstm that wrote it"
                )
            if manifest["format"] != FORMAT:
                raise CheckpointError(f"its format is {manifest['format']!r}, not {FORMAT}")
            files = {name: (f["bytes"], f["sha256"]) for name, f in manifest["files"].items()}
        except PermissionError:
            raise
        except OSError as error:
            raise CheckpointError(f"{MANIFEST_FILE} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{MANIFEST_FILE} is no manifest") from error
        if any(Path(name).name != name for name in files):
            raise CheckpointError(f"{MANIFEST_FILE} names files elsewhere")
        return files


class Damage(NamedTuple):
    """A checkpoint that cannot be used, and why."""

    checkpoint: Checkpoint
    reason: str

    def __str__(self) -> str:
        return f"checkpoint {self.checkpoint.path} is damaged: {self.reason}"


class CheckpointStore:
    """The ``checkpoints`` folder of a run.

    A checkpoint is a folder ``NUMBER-step-STEP``. It is filled under another name, every file is
    synced to the disk, ``manifest.json`` with the size and SHA-256 of each comes last, and the
    folder is renamed: it is whole or absent, whenever the process is killed. Only then older ones
    are removed.

    Args:
        path: The folder, made with the first checkpoint.
        keep: How many of the last checkpoints are kept.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self._keep = keep

    def all(self) -> list[Checkpoint]:
        """All checkpoints, damaged ones too, newest first."""
        if not self.path.is_dir():
            return []
        matches = [(_NAME.fullmatch(path.name), path) for path in self.path.iterdir()]
        found = [Checkpoint(int(m[1]), int(m[2]), path) for m, path in matches if m]
        return sorted(found, reverse=True)

    def write(self, step: int, files: Mapping[str, Callable[[Path], object]]) -> Checkpoint:
        """Write a checkpoint, then remove those that it replaces.

        It replaces those that are too old to keep, and those of later steps, which are left over
        from before training went back.

        Args:
            step: Training steps done.
            files: By file name, what writes the file to the path it is given.

        Raises:
            OSError: It cannot be written; the earlier checkpoints are as they were.
        """
        present = self.all()
        number = present[0].number + 1 if present else 0
        name = f"{number:06d}-step-{step:09d}"
        checkpoint = Checkpoint(number, step, self.path / name)
        if not self.path.is_dir():
            self.path.mkdir()  # without parents: a run that was moved away is not begun anew
            sync(self.path.parent)
        temporary = self.path / f"{TEMPORARY}{name}"
        try:
            with naming(checkpoint.path):
                temporary.mkdir()
                _fill(temporary, files)
                os.rename(temporary, checkpoint.path)
                sync(self.path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        outdated = [old for old in present if old.step > step]
        current = [old for old in present if old.step <= step]
        for old in (*outdated, *current[self._keep - 1 :]):
            self.remove(old)
        return checkpoint

    def remove(self, checkpoint: Checkpoint) -> None:
        """Remove a checkpoint; it is renamed first, so that no half of it is taken for a whole."""
        going = checkpoint.path.with_name(TEMPORARY + checkpoint.path.name)
        os.rename(checkpoint.path, going)
        shutil.rmtree(going)

    def newest(self, before: float = math.inf) -> tuple[Checkpoint | None, list[Damage]]:
        """The newest whole checkpoint of fewer than ``before`` steps; the damaged newer ones.

        Raises:
            NewerFormatError: A later version wrote it, so that nobody can say if it is whole.
        """
        damaged: list[Damage] = []
        for checkpoint in self.all():
            if checkpoint.step >= before:
                continue
            try:
                checkpoint.verify()
            except NewerFormatError:
                raise
            except CheckpointError as error:
                damaged.append(Damage(checkpoint, str(error)))
            else:
                return checkpoint, damaged
        return None, damaged


def _fill(folder: Path, files: Mapping[str, Callable[[Path], object]]) -> None:
    entries = {}
    for name, write in files.items():
        path = folder / name
        write(path)
        sync(path)
        entries[name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    manifest: dict[str, Any] = {"format": FORMAT, "files": entries}
    path = folder / MANIFEST_FILE
    path.write_text(json_text(manifest, indent=2))
    sync(path)
    sync(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

"""Paths as users write them, and files that are whole or absent, also after a crash.

A file is written under another name beside its place, synced to the disk, and then renamed.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_tlstm.checks import plain, require

#: Start of the names of what is being written or removed; a killed process leaves it behind.
TEMPORARY = ".writing-"


def to_path(owner: str, argument: str, value: object) -> Path:
    """A path as the user gave it, with ``~`` and ``~name`` replaced by home folders, as in a shell.

    Raises:
        ValueError: ``value`` is no path, or the home folder that it begins with is unknown, or it
            is the empty string, which ``Path`` would take for the current folder.
    """
    try:
        text = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        text = None
    valid = isinstance(text, str) and text != "" and "\0" not in text
    require(valid, owner, argument, "a path", value)
    if text.startswith("~"):
        text = os.path.expanduser(text)
        expected = "a path from a home folder that is known, or one that begins with ./~,"
        require(not text.startswith("~"), owner, argument, expected, value)
    path = Path(text)
    # As a Path, ./~x is ~x, which would be a home folder to whom it is passed on.
    return path.absolute() if str(path).startswith("~") else path


def without_home(text: str) -> str:
    """``text`` with ``~`` for the path of the home folder, which names a user."""
    home = os.path.expanduser("~")
    if not home.strip("/~"):
        return text
    homes = "|".join(map(re.escape, (os.path.realpath(home), home)))
    return re.sub(rf"(?:{homes})(?!\w)", "~", text)


def cache_folder() -> Path:
    """The folder for facts about this machine that are slow to find out, and may be deleted.

    Where no home is known nothing can be kept, and the path leads through what is no folder.
    """
    cache, home = os.environ.get("XDG_CACHE_HOME"), os.path.expanduser("~")
    home = os.devnull if home == "~" else home
    return (Path(cache) if cache else Path(home, ".cache")) / "mlx_tlstm"


def absence(path: Path) -> str:
    """A message that there is no folder at ``path``, naming folders that it may be a typo of."""
    near = " or ".join(repr(str(one)) for one in _near_folders(path))
    return f"there is no folder {str(path)!r}" + (f" (did you mean {near}?)" if near else "")


def _near_folders(path: Path) -> list[Path]:
    """Folders whose path differs from ``path`` in the first part that is not there."""
    parent, missing = path.parent, path
    while not parent.exists() and parent != parent.parent:
        parent, missing = parent.parent, parent
    try:
        names = [one.name for one in parent.iterdir() if one.is_dir()]
    except OSError:
        return []
    near = [parent / name for name in difflib.get_close_matches(missing.name, names)]
    found = [one / path.relative_to(missing) for one in near]
    return [one for one in found if one.is_dir()]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path`` in an ``OSError`` that names no file, as of a full disk, or a temporary one."""
    try:
        yield
    except OSError as error:
        named = [name for name in (error.filename, error.filename2) if name is not None]
        parts = [part for name in named for part in Path(os.fsdecode(name)).parts]
        if parts and not any(part.startswith(TEMPORARY) for part in parts):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        # On macOS fsync leaves the data in the drive's own cache; not every volume has more.
        if hasattr(fcntl, "F_FULLFSYNC"):
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing; their names are then on the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def remove_leftovers(folder: Path, start: str = TEMPORARY) -> None:
    """Remove what killed processes left in ``folder``: files and folders whose names begin so."""
    for leftover in folder.glob(f"{start}*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then rename it to ``path``, or to what that links to.

    What is no file, as a pipe or ``/dev/null``, is not replaced but written to.

    Raises:
        OSError: The file cannot be written; a file that was at ``path`` is as it was.
    """
    if path.exists() and not path.is_file():
        with naming(path):
            write(path)
        return
    target = Path(os.path.realpath(path))
    # The ending stays last: MLX picks the format by it.
    temporary = target.with_name(TEMPORARY + path.name)
    try:
        with naming(path):
            write(temporary)
            sync(temporary)
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):  # which would hide the error above
            temporary.unlink()
    sync(target.parent)


def replace_text(path: Path, text: str) -> None:
    """Write a file of ``text`` in place of the one at ``path``; see :func:`replace_file`."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def json_text(values: Any, indent: int | None = None) -> str:
    """``values`` as strict JSON, with a line's end.

    A number that is not finite becomes ``null``, since JSON cannot say it. Scalars of NumPy and MLX
    become numbers.
    """
    return json.dumps(_for_json(values), indent=indent, allow_nan=False) + "\n"


def _for_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _for_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(each) for each in value]
    value = plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, owner: str) -> Any:
    """The value in a JSON file; an error's message begins with ``owner``.

    Raises:
        ValueError: The file is damaged.
        OSError: It cannot be read.
    """
    return parse_json(path.read_bytes(), str(path), owner)


def parse_json(text: str | bytes, source: str, owner: str) -> Any:
    """The value of a JSON text. If it is none, a ``ValueError`` names ``owner`` and ``source``."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"[{owner}] '{source}' must hold JSON but {error}") from error


def read_json_lines(path: Path, owner: str) -> list[dict[str, Any]]:
    """The JSON objects of a file that grows by a line at a time, such as a log.

    A last line that breaks off is left out: it is being written, or the process that wrote it was
    killed. Damage elsewhere is an error, which names the line.

    Raises:
        ValueError: A line is no JSON object.
        OSError: The file cannot be read.
    """
    *lines, unfinished = path.read_bytes().split(b"\n")
    records = [_record(line, f"{path}, line {n}", owner) for n, line in enumerate(lines, start=1)]
    try:
        records.append(_record(unfinished, f"{path}, line {len(lines) + 1}", owner))
    except ValueError:
        if unfinished.strip(b"\0")[:1] not in (b"", b"{"):  # zeros: of a machine that went down
            raise
    return records


def _record(line: bytes, source: str, owner: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)  # of JSON's own without its place, which is in a line
        raise ValueError(f"[{owner}] '{source}' must hold JSON but {reason}") from error
    require(isinstance(record, dict), owner, source, "a JSON object", record)
    return record

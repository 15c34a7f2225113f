"""Paths as users write them, the cache, and words for a folder that is not there."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from mlx_tlstm.checks import require


def to_path(owner: str, argument: str, value: object) -> Path:
    """The path that a user means, in which ``~`` and ``~name`` are home folders as in a shell.

    Raises:
        ValueError: ``value`` is no path, is empty, or begins with a home folder that is unknown.
            The empty string would otherwise be the current folder.
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


def cache_folder() -> Path:
    """The folder for what is known about this machine and can be found out again."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "mlx_tlstm"


def absence(path: Path) -> str:
    """A message that there is no folder at ``path``, with existing folders of similar names."""
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

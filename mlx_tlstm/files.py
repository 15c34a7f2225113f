"""Files that are whole or absent, also after a crash: written beside, synced, renamed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_tlstm.checks import plain, require

#: Start of the names of what is being written or removed; a killed process leaves it behind.
TEMPORARY = ".writing-"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add ``path`` to an ``OSError`` that names no file, as after a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
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


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then rename it to ``path``.

    Raises:
        OSError: The file cannot be written; a file that was at ``path`` is as it was.
    """
    # The ending stays last: MLX picks the format by it.
    temporary = path.with_name(TEMPORARY + path.name)
    try:
        with naming(path):
            write(temporary)
            sync(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def json_text(values: Any, indent: int | None = None) -> str:
    """``values`` as JSON that every reader takes, with a line's end.

    JSON has no word for a number that is not finite: it becomes ``null``. Scalars of NumPy and MLX
    are numbers.
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
    """What ``text`` means; ``ValueError``, of ``owner`` about ``source``, where it is no JSON."""
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


def save_arrays(
    path: Path, arrays: Mapping[str, mx.array], header: Mapping[str, str] | None = None
) -> None:
    """Write arrays by name as safetensors, with words by name in the file's header.

    Raises:
        OSError: The file cannot be written, on a full disk too.
    """
    # Given a path, MLX reports a full disk as a RuntimeError without a reason.
    with naming(path), path.open("wb") as file:
        mx.save_safetensors(file, dict(arrays), header and dict(header))


def load_arrays(path: Path, owner: str) -> dict[str, mx.array]:
    """Read arrays by name from a safetensors file; ``owner`` opens the message of the error.

    Raises:
        ValueError: The file is no whole safetensors file.
    """
    return load_arrays_and_header(path, owner)[0]


def load_arrays_and_header(path: Path, owner: str) -> tuple[dict[str, mx.array], dict[str, str]]:
    """What :func:`save_arrays` wrote; else as :func:`load_arrays`."""
    try:
        arrays, header = mx.load(str(path), format="safetensors", return_metadata=True)
        mx.eval(arrays)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"[{owner}] '{path}' must be a safetensors file but {reason}") from error
    return arrays, header


def require_like(
    owner: str,
    source: str,
    found: Mapping[str, mx.array],
    expected: Mapping[str, mx.array],
    authority: str,
) -> None:
    """Raise ``ValueError`` unless two sets of arrays agree in names, shapes and types.

    Args:
        owner: Opens the message.
        source: Where ``found`` was read, for the message.
        found: Arrays by name.
        expected: What they should look like.
        authority: What says so, for the message.
    """
    for name in sorted(found.keys() | expected.keys()):
        wanted, came = (_describe(arrays.get(name)) for arrays in (expected, found))
        argument = f"{source}: {name}"
        require(wanted == came, owner, argument, f"{wanted}, as {authority} says,", came)


def _describe(array: mx.array | None) -> str:
    if array is None:
        return "absent"
    return f"{array.dtype} {list(array.shape)}".removeprefix("mlx.core.")

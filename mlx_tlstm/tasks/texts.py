"""Reads a user's text as bytes: unpacks it, and refuses files that are no text.

A file's bytes decide, never its name: what holds a zero byte is no text, as for git.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

_UNPACKING_ERRORS = (
    EOFError,
    OSError,
    RuntimeError,  # encrypted; NotImplementedError is one: a compression that Python lacks
    ValueError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)
#: Bytes in which a zero is looked for.
_HEAD = 1 << 16


def read_text(path: Path, owner: str) -> bytes:
    """The bytes of a text file, or of the one that a zip, gzip, bzip2 or xz file holds.

    Args:
        path: The file.
        owner: Opens the message of an error.

    Raises:
        ValueError: The file holds no text, or is packed and damaged, encrypted or of another number
            of files.
        OSError: It cannot be read.
    """
    data, problem = path.read_bytes(), ""
    for kind, starts, unpack in _PACKED:
        if data.startswith(starts):
            try:
                data = unpack(data)
            except _UNPACKING_ERRORS as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                problem = f"is {kind} that cannot be read: {reason}"
            break
    if not problem and b"\0" in data[:_HEAD]:
        problem = "holds zero bytes, which no text in UTF-8 or an encoding of 8 bits has"
    if problem:
        raise ValueError(
            f"[{owner}] 'data' must be a text, as it is or packed alone as zip, gzip, bzip2 or xz, "
            f"but {str(path)!r} {problem}"
        )
    return data


def _from_zip(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [member.filename for member in archive.infolist() if not member.is_dir()]
        names = [name for name in names if not _is_of_a_mac(name)]
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} files; unpack it and name one")
        return archive.read(names[0])


def _is_of_a_mac(name: str) -> bool:
    """Whether a Mac added it of itself, as ``__MACOSX/._enwik8``."""
    own = PurePosixPath(name).name
    return own.startswith("._") or own == ".DS_Store"


#: What a packed file is, how it begins, and what unpacks it.
_PACKED: tuple[tuple[str, tuple[bytes, ...], Callable[[bytes], bytes]], ...] = (
    ("a zip archive", (b"PK\3\4", b"PK\5\6"), _from_zip),
    ("a gzip file", (b"\x1f\x8b\x08",), gzip.decompress),
    ("a bzip2 file", tuple(b"BZh%d1AY&SY" % level for level in range(1, 10)), bz2.decompress),
    ("an xz file", (b"\xfd7zXZ\0",), lzma.decompress),
)

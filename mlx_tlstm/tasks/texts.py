"""Reads a user's text as bytes: unpacks it from an archive, and refuses files that are no text.

A file's bytes decide, never its name: what holds a zero byte is no text, as for git.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

#: Archives in archives that are opened, such as .tar.gz; more are some mistake.
_DEEPEST = 3
#: Members of an archive that an error names.
_NAMED = 8

_UNPACKED = (
    EOFError,
    OSError,
    RuntimeError,  # encrypted; NotImplementedError is one: a compression that Python lacks
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)

#: Byte order marks; that of UTF-32 in little endian begins with UTF-16's.
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
#: Bytes in which a zero is looked for.
_HEAD = 1 << 16


def read_text(path: Path, owner: str) -> bytes:
    """The bytes of a text file or, if it is an archive, of the one file in it.

    Archives may be zip, tar, gzip, bzip2, xz or lzma, also one inside another.

    Args:
        path: The file.
        owner: Opens the message of an error.

    Raises:
        ValueError: The file holds no text, or is an archive that is damaged, encrypted
            or holds another number of files.
        OSError: It cannot be read.
    """
    data = path.read_bytes()
    for depth in range(_DEEPEST + 1):
        verb = "holds" if depth else "is"
        archive = next((a for a in _ARCHIVES if a[1](data)), None)
        if archive is None:
            if (kind := _foreign(data)) is not None:
                raise ValueError(_message(owner, path, f"{verb} {kind}"))
            return data
        name, _, unpack = archive
        try:
            data = unpack(data)
        except _NotOneFile as error:
            raise ValueError(_message(owner, path, f"{verb} {name} of {error}")) from None
        except _UNPACKED as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            problem = f"{verb} {name} that cannot be read: {reason}"
            raise ValueError(_message(owner, path, problem)) from error
    raise ValueError(_message(owner, path, f"holds archives in archives, over {_DEEPEST} deep"))


def _message(owner: str, path: Path, problem: str) -> str:
    return (
        f"[{owner}] 'data' must be a text, as it is or packed alone as zip, tar, gzip, bzip2 or "
        f"xz, but {str(path)!r} {problem}"
    )


class _NotOneFile(Exception):  # noqa: N818 (says how many files an archive holds)
    pass


def _only(names: Iterable[str]) -> str:
    """The one name of a file, without those that a Mac's own packing adds."""
    files = [
        name
        for name in names
        if not name.startswith("__MACOSX/")
        and not PurePosixPath(name).name.startswith("._")
        and PurePosixPath(name).name != ".DS_Store"
    ]
    if len(files) != 1:
        listing = ", ".join(map(repr, files[:_NAMED])) + (", …" if len(files) > _NAMED else "")
        counted = f"{len(files)} files, {listing}; unpack it and name one" if files else "no file"
        raise _NotOneFile(counted)
    return files[0]


def _from_zip(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [member.filename for member in archive.infolist() if not member.is_dir()]
        return archive.read(_only(members))


def _from_tar(data: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        members = {member.name: member for member in archive if member.isfile()}
        return archive.extractfile(members[_only(members)]).read()


#: Name, whether the first bytes say so, and what unpacks it.
_ARCHIVES: tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes], bytes]], ...] = (
    ("a zip archive", lambda data: data[:4] in (b"PK\3\4", b"PK\5\6"), _from_zip),
    (
        "a tar archive",
        lambda data: data[257:262] == b"ustar" and b"\0" in data[:257],
        _from_tar,
    ),
    ("a gzip file", lambda data: data[:3] == b"\x1f\x8b\x08", gzip.decompress),
    # Behind the letters comes the first block, or the end of an empty file.
    (
        "a bzip2 file",
        lambda data: data[:3] == b"BZh" and data[4:7] in (b"1AY", b"\x17\x72\x45"),
        bz2.decompress,
    ),
    ("an xz file", lambda data: data[:6] == b"\xfd7zXZ\0", lzma.decompress),
    ("an lzma file", lambda data: data[:3] == b"]\0\0", lzma.decompress),
)


def _foreign(data: bytes) -> str | None:
    """What kind of file data is, if its bytes show that it is no text; else ``None``."""
    # Both may be without a zero byte.
    if data.startswith(b"\x1f\x9d"):
        return "a compress archive"
    if data.startswith(b"%PDF-") and b"%%EOF" in data[-1024:]:
        return "a PDF document"
    if b"\0" not in data[:_HEAD]:
        return None
    if data.startswith(_WIDE):
        return "UTF-16 or UTF-32 text; save it as UTF-8"
    return "no text in UTF-8 or an encoding of 8 bits, which has no zero bytes"

"""Reads a user's text as bytes: unpacks it from an archive, and refuses files that are no text.

First bytes decide, never a file's name. What they do not give away is taken as it is: text of any
encoding that has single bytes for its line ends, or any bytes at all.
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

#: First bytes that no text has.
_FOREIGN: dict[bytes, str] = {
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x04\x22\x4d\x18": "an LZ4 archive",
    b"LZIP\x01": "an lzip archive",
    b"\x1f\x9d": "a compress archive",
    b"\xff\x06\x00\x00sNaPpY": "a Snappy archive",
    b"MSCF\0\0\0\0": "a Cabinet archive",
    b"xar!\0": "a xar archive",
    b"\xed\xab\xee\xdb": "an RPM package",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"CDF\x01": "a NetCDF file",
    b"CDF\x02": "a NetCDF file",
    b"SQLite format 3\0": "an SQLite database",
    b"ARROW1\0\0": "an Arrow file",
    b"Obj\x01": "an Avro file",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Office document",
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"8BPS\0": "a Photoshop image",
    b"\x1a\x45\xdf\xa3": "a Matroska film",
    b"OggS\0": "an Ogg sound",
    b"fLaC\0": "a FLAC sound",
    b"\x7fELF": "an ELF program",
    b"\xcf\xfa\xed\xfe": "a Mach-O program",
    b"\xce\xfa\xed\xfe": "a Mach-O program",
    b"\xfe\xed\xfa\xcf": "a Mach-O program",
    b"\xfe\xed\xfa\xce": "a Mach-O program",
    b"\xca\xfe\xba\xbe": "a Mach-O program or a Java class",
    b"\0asm": "a WebAssembly program",
    b"\xac\xed\0\x05": "a serialised Java object",
    b"PACK\0\0\0": "a git pack",
    **{b"\0\0\x08" + bytes([dimensions]): "an IDX file, as MNIST's," for dimensions in range(1, 5)},
    **{b"\x80" + bytes([protocol]): "a pickle" for protocol in range(2, 6)},
}

#: First bytes that a text may have; it has no zero byte after them.
_LETTERS = {
    b"GIF87a": "a GIF image",
    b"GIF89a": "a GIF image",
    b"RIFF": "a WebP image, a WAV sound or an AVI film",
    b"GGUF": "a GGUF model",
    b"bplist00": "a property list",
    b"wOFF": "a font",
    b"wOF2": "a font",
    b"MATLAB 5.0 MAT-file": "a MATLAB file",
}

#: Encodings of two or four bytes a character, and their byte order marks; the longer ones first.
_WIDE = {
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
#: Bytes that are looked at where the first few leave a doubt.
_HEAD = 1 << 16


def read_text(path: Path, owner: str) -> bytes:
    """The bytes of a text file or, if it is an archive, of the one file in it.

    Archives may be zip, tar, gzip, bzip2, xz or lzma, also one inside another.

    Args:
        path: The file.
        owner: Opens the message of an error.

    Raises:
        ValueError: The file is recognised as no text, or is an archive that is damaged, encrypted
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


def _is_tar(data: bytes) -> bool:
    if data[257:262] != b"ustar":
        return False
    try:
        tarfile.TarInfo.frombuf(data[:512], "utf-8", "surrogateescape")  # has a check sum
    except tarfile.HeaderError:
        return False
    return True


def _is_bzip2(data: bytes) -> bool:
    # Behind the letters comes the first block, or the end of an empty file.
    return data[:3] == b"BZh" and data[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")


def _is_lzma(data: bytes) -> bool:
    # The size of what it holds: unknown, or below 2^48.
    size = data[5:13]
    return data[:3] == b"]\0\0" and (size == b"\xff" * 8 or size[6:] == b"\0\0")


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeDecodeError:
        return False
    return True


#: Name, whether the first bytes say so, and what unpacks it.
_ARCHIVES: tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes], bytes]], ...] = (
    ("a zip archive", lambda data: data[:4] in (b"PK\3\4", b"PK\5\6"), _from_zip),
    ("a tar archive", _is_tar, _from_tar),
    ("a gzip file", lambda data: data[:3] == b"\x1f\x8b\x08", gzip.decompress),
    ("a bzip2 file", _is_bzip2, bz2.decompress),
    ("an xz file", lambda data: data[:6] == b"\xfd7zXZ\0", lzma.decompress),
    ("an lzma file", _is_lzma, lzma.decompress),
)


def _foreign(data: bytes) -> str | None:
    """What kind of file data is, if its bytes show that it is no text; else ``None``."""
    kind = next((kind for start, kind in _FOREIGN.items() if data.startswith(start)), None)
    if kind is not None:
        return kind
    head = data[:_HEAD]
    binary = b"\0" in head  # as half of a line's end in UTF-16 is
    for encoding, marks in _WIDE.items():
        if data.startswith(marks) and binary and _decodes(head, encoding):
            return f"{encoding.upper()} text; save it as UTF-8"
    # What begins with letters, as a text about it may, has more to tell it by.
    if data[:4] in (b"PAR1", b"PARE", b"FEA1") and len(data) >= 12 and data.endswith(data[:4]):
        return "a Parquet or Feather file"
    if data.startswith(b"ORC") and data[-4:-1] == b"ORC":
        return "an ORC file"
    if data.startswith(b"!<arch>\n") and data[66:68] == b"`\n":
        return "an ar archive"
    if data.startswith(b"ID3") and data[3:4] in (b"\2", b"\3", b"\4"):
        return "an MP3 sound"
    if data[4:8] == b"ftyp" and data[0] == 0:
        return "an MP4 film or a HEIF image"
    if data.startswith(b"%PDF-") and (binary or b"%%EOF" in data[-1024:]):
        return "a PDF document"
    if data.startswith(b"BM") and data[6:10] == bytes(4):
        return "a BMP image"
    if data.startswith(b"MZ") and b"PE\0\0" in data[:4096]:
        return "a Windows program"
    if binary:
        kind = next((kind for start, kind in _LETTERS.items() if data.startswith(start)), None)
        if kind is not None:
            return kind
    # Both begin with the length of what follows.
    if data[8:10] == b'{"' and 2 <= int.from_bytes(data[:8], "little") <= len(data) - 8:
        return "a safetensors file"
    if data[:4] == b"\xff" * 4 and 0 < int.from_bytes(data[4:8], "little") < len(data):
        return "an Arrow file"
    return None

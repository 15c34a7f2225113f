"""A user's text, packed or not, and files that are no text."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import pickle
import shutil
import sqlite3
import sys
import wave
import zipfile

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from tiny_tasks import TINY, write_text

from mlx_tlstm import training
from mlx_tlstm.commands.main import main
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.tasks.texts import read_text

TEXT = b"a tensor of cells\n" * 100


def zipped(*members, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def read(tmp_path, data, name="text"):
    (tmp_path / name).write_bytes(data)
    return read_text(tmp_path / name, "Wikipedia")


PACKED = {
    "zip": zipped(("enwik8", TEXT)),
    "zip, stored": zipped(("enwik8", TEXT), compression=zipfile.ZIP_STORED),
    "zip, lzma": zipped(("enwik8", TEXT), compression=zipfile.ZIP_LZMA),
    "zip of a folder": zipped(("texts/", b""), ("texts/enwik8", TEXT)),
    "zip of a Mac": zipped(("a", TEXT), ("__MACOSX/._a", b"\0"), (".DS_Store", b"\0")),
    "gzip": gzip.compress(TEXT),
    "gzip in two parts": gzip.compress(TEXT[:70]) + gzip.compress(TEXT[70:]),
    "bzip2": bz2.compress(TEXT),
    "xz": lzma.compress(TEXT),
}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_texts_are_read(kind, tmp_path):
    assert read(tmp_path, PACKED[kind]) == TEXT


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        b"",
        b"\n",
        "Größe, 漢字\n".encode() * 9,
        "\ufeffBOM\n".encode(),
        "Größe\n".encode("latin-1") * 9,
        "Текст\n".encode("koi8-r") * 9,
        b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.3/" version="0.3">\n',
        "テキスト\n".encode("shift-jis") * 9,
        bytes(range(1, 256)) * 9,
        b"\xff\xfeletters of latin-1",
        b"\xff" * 99,
        *(start + b" is how such files begin.\n" for start in (b"PK", b"BZh9", b"ID3")),
    ],
)
def test_texts_are_taken_as_they_are(text, tmp_path):
    assert read(tmp_path, text) == text


def files_of_other_programs(folder):
    """Files as other programs write them."""
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.orc
    import pyarrow.parquet
    from PIL import Image

    table = pa.table({"text": ["a", "b"]})
    pa.parquet.write_table(table, folder / "Parquet")
    pa.feather.write_feather(table, folder / "Arrow")
    with pa.ipc.new_stream(folder / "Arrow file", table.schema) as stream:
        stream.write_table(table)
    pa.orc.write_table(table, folder / "ORC")
    mx.save_safetensors(str(folder / "safetensors"), {"a": mx.zeros(3)})
    (folder / "safetensors").with_suffix(".safetensors").rename(folder / "safetensors")
    mx.save_gguf(str(folder / "GGUF"), {"a": mx.zeros(3)})
    (folder / "GGUF").with_suffix(".gguf").rename(folder / "GGUF")
    for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WebP"):
        Image.new("L", (8, 8)).save(folder / name, format=name)
    with (folder / "NumPy array").open("wb") as file:
        np.save(file, np.zeros(3))
    sqlite3.connect(folder / "SQLite").execute("create table a (b)").connection.close()
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (folder / f"pickle {protocol}").write_bytes(pickle.dumps({"a": 1}, protocol))
    for encoding in ("utf-16", "utf-32"):
        (folder / encoding.upper()).write_bytes(TEXT.decode().encode(encoding))
    (folder / "UTF-16 text").write_bytes(b"\xfe\xff" + TEXT.decode().encode("utf-16-be"))
    shutil.copyfile(sys.executable, folder / "ELF")
    with wave.open(str(folder / "WAV"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(np.arange(1, 99, dtype=np.int16).tobytes())


def test_files_that_are_no_text(tmp_path):
    files_of_other_programs(tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) >= 20
    for path in paths:
        with pytest.raises(ValueError, match=r"'data' must be a text, .* but .* holds zero bytes"):
            read_text(path, "Wikipedia")


@pytest.mark.parametrize(
    "data",
    [
        b"\0" + TEXT,
        TEXT * 36 + b"\0" + TEXT * 36,  # within the first 64 KiB
        TEXT.decode().encode("utf-16-le"),
        b"\xca\xfe\xba\xbe\0\0\0\x34\0\x10",  # a class of Java
        b"MThd\0\0\0\6\0\1\0\2\1\xe0MTrk\0\0\0\4\0\xff\x2f\0",  # MIDI
        b"\xff\xfb\x90\x64" + bytes(32) + b"\x5a" * 381,  # a silent frame of MP3
        b"7z\xbc\xaf\x27\x1c\0\4",
        b"Rar!\x1a\x07\x01\0",
        gzip.compress(b"\0" + TEXT),
        zipped(("arr_0.npy", b"\x93NUMPY\1\0")),
        bz2.compress(b""),
    ],
)
def test_a_zero_byte_is_in_no_text(data, tmp_path):
    with pytest.raises(ValueError, match=r"'data' must be a text, .*text' holds zero bytes"):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped(("a", TEXT), ("b/c", TEXT)), "zip archive .* it holds 2 files; unpack it"),
        (zipped(), "zip archive .* it holds 0 files"),
        (zipped(("a/", b"")), "zip archive .* it holds 0 files"),
        (b"BZh91AY&SY and so on", "bzip2 file that cannot be read: "),
        (PACKED["gzip"][:-9], "gzip file that cannot be read: Compressed file ended"),
        (PACKED["gzip"][:-8] + bytes(8), "gzip file that cannot be read: CRC check failed"),
        (PACKED["bzip2"][:-3], "bzip2 file that cannot be read: "),
        (PACKED["xz"][:-3], "xz file that cannot be read: "),
        (PACKED["zip"][:-3], "zip archive that cannot be read: "),
        (PACKED["zip"][:50] + b"x" + PACKED["zip"][51:], "zip archive that cannot be read: "),
        (
            PACKED["zip"].replace(b"\x14\0\0\0", b"\x14\0\1\0"),
            "zip archive that cannot be read: .* encrypted",
        ),
        (
            PACKED["zip"].replace(b"\0\x08\0", b"\0\x5d\0"),
            "zip archive that cannot be read: .*compression",
        ),
    ],
)
def test_packed_files_that_are_refused(data, message, tmp_path):
    with pytest.raises(ValueError, match=rf"'data' must be a text, .*text' is an? {message}"):
        read(tmp_path, data)


def test_a_run_on_a_packed_text(tmp_path):
    """It trains on the text, goes on when that was unpacked, and is evaluated on either."""
    plain = write_text(tmp_path / "plain")
    (tmp_path / "packed").write_bytes(gzip.compress(plain.read_bytes()))
    config = TASKS["wikipedia"].quick().replace(**TINY, length=10)
    records = [
        training.fit(config.replace(data=str(tmp_path / name)), tmp_path / f"run-{name}").test
        for name in ("plain", "packed")
    ]
    assert records[0] == records[1]
    (tmp_path / "packed").write_bytes(plain.read_bytes())
    (tmp_path / "run-packed" / "test.json").unlink()
    assert training.resume(tmp_path / "run-packed").test == records[0]
    for data in ([], ["--data", str(plain)]):
        done = CliRunner().invoke(main, ["evaluate", str(tmp_path / "run-packed"), *data])
        assert done.exit_code == 0, done.output
    (tmp_path / "packed").write_bytes(zipped(("a", TEXT), ("b", TEXT)))
    done = CliRunner().invoke(main, ["train", "wikipedia", "--data", str(tmp_path / "packed")])
    assert done.exit_code == 2
    assert "it holds 2 files; unpack it and name one" in done.output
    assert not list(itertools.chain(tmp_path.glob("runs"), tmp_path.glob("packed-*")))

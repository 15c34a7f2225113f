"""Output streams that are closed or broken, or lack a character."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from processes import environment
from tiny_tasks import TINY, write_text

from mlx_tlstm import training
from mlx_tlstm.commands.base import Command
from mlx_tlstm.streams import SafeStream, forgiving, safe_streams, say
from mlx_tlstm.tasks import TASKS


def open_pipe():
    """A text stream into a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


FULL = Path("/dev/full")
#: macOS has no such file.
with_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def open_full():
    """A text stream to a full disk."""
    return FULL.open("w")


def open_closed():
    """A text stream that was closed from Python."""
    stream = open(os.devnull, "w")  # noqa: SIM115
    stream.close()
    return stream


def test_what_an_encoding_lacks_is_escaped():
    for encoding, expected in (
        ("ascii", b"\\xb7 \\u20ac \\udcff"),
        ("latin-1", b"\xb7 \\u20ac \\udcff"),
        ("utf-8", "· € \\udcff".encode()),
    ):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        safe = SafeStream(stream, forgiving=False)
        print("· € \udcff", end="", file=safe, flush=True)
        assert stream.buffer.getvalue() == expected
        safe.write_bytes(b"\xff")
        assert stream.buffer.getvalue() == expected + b"\xff"
    text = io.StringIO()
    forgiving(text).write("·")
    forgiving(text).write_bytes("ö".encode())
    assert text.getvalue() == "·ö"


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_broken_pipe(unbuffered):
    stream = open_pipe()
    stream.reconfigure(write_through=unbuffered)
    strict = SafeStream(stream, forgiving=False)
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            print("text", file=strict, flush=True)
    safe = forgiving(stream)
    for _ in range(2):
        print("text", file=safe, flush=True)
        safe.write_bytes(b"text")
    safe.release()
    stream.close()  # what was left in its buffer went nowhere


@with_full
def test_a_full_disk():
    with open_full() as stream:
        strict = SafeStream(stream, forgiving=False)
        with pytest.raises(OSError, match=r"No space left on device: 'standard output'"):
            print("text", file=strict, flush=True)
        strict.release()


def test_no_stream_at_all(monkeypatch):
    for stream in (None, open_closed()):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        say("text")
        say("text", error=True)
        forgiving(stream).write_bytes(b"text")
        assert not forgiving(stream).isatty()


def test_streams_are_put_back(capsys):
    before = sys.stdout, sys.stderr
    with safe_streams():
        assert isinstance(sys.stdout, SafeStream)
        assert forgiving(sys.stderr) is sys.stderr
        print("text")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "text\n"


@pytest.mark.parametrize("bar", [False, True])
@pytest.mark.parametrize(
    "stream", [open_pipe, pytest.param(open_full, marks=with_full), open_closed, lambda: None]
)
def test_progress_of_a_run_in_python(tmp_path, monkeypatch, stream, bar):
    config = TASKS["addition"].quick().replace(**TINY, length=2, variant="2d-tlstm")
    broken = stream()
    monkeypatch.setattr(sys, "stdout", broken)
    monkeypatch.setattr(sys, "stderr", broken)
    assert training.fit(config, tmp_path / "run", [training.Progress(bar)]).best
    training.Progress().on_note("note")
    if broken is not None:
        safe = forgiving(broken)
        print(file=safe, flush=True)  # or its destructor would fail on what it could not write
        safe.release()
        broken.close()


@pytest.mark.parametrize("keeps_results", [False, True])
def test_commands(keeps_results, monkeypatch):
    done = []

    @click.command(cls=Command, keeps_results=keeps_results)
    def command():
        click.echo("·")
        done.append(True)

    assert CliRunner().invoke(command).stdout == "·\n"
    stream = open_pipe()
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as end:
        command([])
    assert (end.value.code, len(done)) == ((0, 2) if keeps_results else (1, 1))
    stream.close()


def shell(line, **changes):
    """Run a line of bash; its output and exit code."""
    settings = environment(OPENBLAS_NUM_THREADS="1", PYTHON=sys.executable, **changes)
    return subprocess.run(["bash", "-c", line], capture_output=True, env=settings, timeout=120)


def test_as_a_user_starts_them(tmp_path):
    """Training with all three closed, and in ASCII; a text that its reader has enough of."""
    text = write_text(tmp_path / "text")
    text.write_bytes("Größe ".encode() * 700)
    sizes = "--length 5 --depth 2 --hidden-size 8 --batch-size 4 --samples 24 --eval-every 8"
    train = f'cd {tmp_path} && "$PYTHON" -m mlx_tlstm.train wikipedia --data text {sizes} --out'
    ended = shell(f"{train} closed <&- >&- 2>&-")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    assert (tmp_path / "closed" / "test.json").exists()
    ended = shell(f"{train} ascii", PYTHONIOENCODING="ascii")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(rb"wikipedia \xb7 2d-tlstm+cn")
    generate = f'cd {tmp_path} && "$PYTHON" -m mlx_tlstm.generate closed --length'
    ended = shell(f"{generate} 9 --prompt ß", PYTHONIOENCODING="latin-1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(b"\xdf")
    ended = shell(f"set -o pipefail; {generate} 1000000 | head -c 1")
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b" ", b"")
    if FULL.exists():
        ended = shell(f"{generate} 9 > {FULL}")
        assert ended.returncode == 1
        assert b"No space left on device: 'standard output'" in ended.stderr
        assert b"Traceback" not in ended.stderr

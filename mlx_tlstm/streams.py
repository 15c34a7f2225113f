"""Standard output and standard error, so that neither can end a program's work.

A terminal is closed, the reader of a pipe goes, a disk is full, an encoding lacks a character.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO


class SafeStream:
    """A text stream in place of another one, or of ``None``, which Python has for a closed one.

    A character that the encoding lacks is written as an escape, such as ``\\xb7``.

    Args:
        stream: What to write to.
        forgiving: Whether output is dropped from the first failed write on; otherwise a failed
            write raises ``OSError``.
    """

    def __init__(self, stream: TextIO | None, forgiving: bool) -> None:
        self.forgiving = forgiving
        self._stream = stream
        self._lost = False

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        fitting = text.encode(encoding, "backslashreplace").decode(encoding)
        self._attempt(lambda: self._stream.write(fitting))
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Write bytes past the encoding, at once; a stream of text alone gets it as UTF-8."""
        if not hasattr(self._stream, "buffer"):
            self.write(data.decode(errors="replace"))
            return

        def write() -> None:
            self._stream.flush()
            self._stream.buffer.write(data)
            self._stream.buffer.flush()

        self._attempt(write)

    def flush(self) -> None:
        self._attempt(lambda: self._stream.flush())

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def release(self) -> None:
        """Leave the stream so that Python does not fail at its end over what nobody can read."""
        with contextlib.suppress(OSError):
            self.flush()
        if self._lost:
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)

    def _attempt(self, write: Callable[[], object]) -> None:
        if self._stream is None or (self._lost and self.forgiving):
            return
        try:
            write()
        except (OSError, ValueError) as error:  # ValueError: closed from Python
            self._lost = True
            if self.forgiving:
                return
            if isinstance(error, BrokenPipeError):
                raise
            number = getattr(error, "errno", None) or errno.EBADF
            raise OSError(number, os.strerror(number), "standard output") from error

    def __getattr__(self, name: str) -> Any:
        # click takes ASCII for a mistake, and would write UTF-8 past this object.
        if name == "buffer" and codecs.lookup(self.encoding or "utf-8").name == "ascii":
            raise AttributeError(name)
        return getattr(self._stream, name)


def forgiving(stream: TextIO | None) -> SafeStream:
    """``stream`` so that writing to it never fails."""
    same = isinstance(stream, SafeStream) and stream.forgiving
    return stream if same else SafeStream(stream, forgiving=True)


def say(text: str, error: bool = False) -> None:
    """Print a line, or drop it where it cannot be; ``error``: on standard error."""
    print(text, file=forgiving(sys.stderr if error else sys.stdout), flush=True)


@contextlib.contextmanager
def safe_streams(keeps_results: bool = False) -> Iterator[None]:
    """Replace ``sys.stdout`` and ``sys.stderr`` by safe ones.

    The second is forgiving, and the first for a program that keeps its results elsewhere.

    Standard descriptors that are closed are opened on ``/dev/null``, also for child processes: the
    next file to be opened would get the number, and in it what a library writes to the terminal.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number
    before = sys.stdout, sys.stderr
    safe = SafeStream(sys.stdout, keeps_results), SafeStream(sys.stderr, forgiving=True)
    sys.stdout, sys.stderr = safe
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in safe:
            stream.release()

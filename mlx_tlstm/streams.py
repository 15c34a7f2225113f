"""Standard output and standard error that cannot end a program's work when writing to them fails.

It fails when a terminal is closed, the reader of a pipe has ended, a disk is full, or the encoding
lacks a character.
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
    """Stands in for a text stream, or for ``None``, which is Python's stream if it was closed.

    A character that the encoding lacks is written as an escape, such as ``\\xb7``.

    Args:
        stream: What to write to.
        forgiving: If True, the first write that fails and all later ones are dropped; if False, a
            write that fails raises ``OSError``.
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
        """Write bytes as they are, and flush; a stream that takes only text gets them as UTF-8."""
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
        with contextlib.suppress(ValueError):  # closed from Python
            return self._stream is not None and self._stream.isatty()
        return False

    def release(self) -> None:
        """Prepare for the end: Python must not fail when it flushes output that nobody can read."""
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
    """Print a line, to standard error with ``error``; if that fails, the line is dropped."""
    print(text, file=forgiving(sys.stderr if error else sys.stdout), flush=True)


@contextlib.contextmanager
def safe_streams(keeps_results: bool = False) -> Iterator[None]:
    """Replace ``sys.stdout`` and ``sys.stderr`` by a :class:`SafeStream` each.

    Standard error is forgiving. Standard output is so with ``keeps_results``, which is for programs
    whose results are in files.

    If file descriptor 0, 1 or 2 is closed, ``/dev/null`` is opened in its place, for child
    processes too. Otherwise the next file that the program opens would get that number, and a
    library that writes to the terminal would write into the file.
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

"""Source lines for the addresses in the runtime's messages."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

_ADDRESS = re.compile(r"pc 0x([0-9a-f]+)")
PROGRAMS = {
    "llvm-symbolizer-19": ["--inlines", "--functions=none", "--obj={library}"],
    "llvm-symbolizer": ["--inlines", "--functions=none", "--obj={library}"],
    "addr2line": ["--inlines", "--exe={library}"],
}


def symbolize(library: Path, message: str) -> str:
    """The message with ``file:line`` in place of every ``pc 0x…``.

    The addresses stay where no program that knows them is installed (LLVM's symbolizer or
    addr2line).
    """

    def line_of(match: re.Match[str]) -> str:
        # One byte before the return address lies within the call.
        return _source_line(library, int(match.group(1), 16) - 1) or match.group()

    return _ADDRESS.sub(line_of, message)


@functools.cache
def find_symbolizer() -> tuple[str, list[str]] | None:
    for program, arguments in PROGRAMS.items():
        path = shutil.which(program)
        if path is not None:
            return path, arguments
    return None


def _source_line(library: Path, address: int) -> str | None:
    """The innermost line that is not of the stand-in headers, or None."""
    symbolizer = find_symbolizer()
    if symbolizer is None:
        return None
    program, arguments = symbolizer
    words = [word.format(library=library) for word in arguments]
    result = subprocess.run([program, *words, hex(address)], capture_output=True, text=True)
    for line in result.stdout.splitlines():
        if re.search(r":[1-9]", line) and "/native/" not in line:
            return re.sub(r"^(\./)+", "", line.strip())
    return None

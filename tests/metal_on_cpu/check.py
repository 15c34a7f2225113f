"""The type check: compiles a kernel with Metal's address spaces, for its errors only."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from metal_on_cpu import toolchain
from metal_on_cpu.cpu import USER_TEXT
from metal_on_cpu.errors import MslError


def check_text(name: str, text: str, includes: Sequence[str]) -> str:
    """The compiler's warnings for a translated kernel (:func:`metal_on_cpu.cpu.text_to_check`).

    Raises:
        MslError: with the compiler's messages.
    """

    def make(path: Path) -> None:
        source = path.with_suffix(".clcpp")
        source.write_text(text)
        command = [*toolchain.toolchain().compile, *toolchain.CHECK_FLAGS, *includes]
        result = toolchain.run([*command, "-Xclang", "-ast-dump", source])
        error = result.stderr if result.returncode else _more_errors(result)
        path.write_text(json.dumps({"error": error, "warnings": result.stderr}))

    key = [Path(__file__).read_text(), text, *toolchain.CHECK_FLAGS, *includes]
    result = json.loads(toolchain.cached(name, key, ".check.json", make).read_text())
    if result["error"]:
        raise MslError(result["error"])
    return result["warnings"]


def _more_errors(result: subprocess.CompletedProcess[str]) -> str:
    """What is an error to Metal but not to clang, found in its warnings and its syntax tree."""
    narrowed = re.findall(
        r"(\S+: )warning: (implicit conversion.*'(?:[^']*\bfloat|[^']*\bhalf)' to .*__bf16'.*)",
        result.stderr,
    )
    if narrowed:
        return "error: " + "; ".join(place + text for place, text in narrowed)
    # Clang takes a pointer or reference without an address space for a generic one, or deduces it.
    own = result.stdout[result.stdout.index(USER_TEXT) :]
    found = re.findall(r"(?:VarDecl|FieldDecl) [^'\n]* (\w+) '([^'\n]*)'", own)
    generic = {
        f"{name} '{type_}'"
        for name, type_ in found
        if name not in _AST_MARKS and not name.startswith("__") and _lacks_address_space(type_)
    }
    if generic:
        return "pointer or reference without an address space: " + "; ".join(sorted(generic))
    return ""


#: Words that stand in the place of a name where a parameter has none.
_AST_MARKS = {"used", "referenced", "implicit", "invalid", "constexpr", "parameter"}
_ADDRESS_SPACE = re.compile(r"\b(?:__global|__local|__constant|__private|auto)\b")


def _lacks_address_space(type_: str) -> bool:
    # In 'const __global float *__private', the last word is the pointer's own.
    without_sizes = re.sub(r"\[[^\]]*\]", "", type_)
    pointees = re.split(r"[*&]+", without_sizes)[:-1]
    return any(not _ADDRESS_SPACE.search(pointee) for pointee in pointees)

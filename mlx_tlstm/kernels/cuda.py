"""Metal kernels for ``mx.fast.cuda_kernel``: the same source on an NVIDIA GPU.

Most of Metal's names are defined in CUDA by ``metal/cuda.h`` and its like. What no header can do is
done to the text: the words for address spaces go, since CUDA finds them out by itself (and uses
``device`` within its own keywords, so that macros cannot remove them); threadgroup variables become
``__shared__``; the thread attributes, parameters of a Metal kernel, become local constants.
"""

from __future__ import annotations

import re
from collections.abc import Callable

#: The attributes for which ``metal/cuda.h`` has a function ``msl_<attribute>()``.
ATTRIBUTES = {
    "simdgroup_index_in_threadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
}
#: By a word in a kernel's text: the file that defines what it is part of; the first is for all.
PRELUDES = {"": "cuda.h", "simdgroup_matrix": "cuda_matrices.h"}

_METAL_HEADER = re.compile(r"^[ \t]*#include <metal_\w+>", re.MULTILINE)
_ADDRESS_SPACES = re.compile(r"\b(device|constant|thread|threadgroup)\b")
_DEFINITION = re.compile(r"\bthreadgroup ((?:PACKED )?\w+) (\w+)((?:\[[^][;]*\])*);")
#: The word where it qualifies no pointer and no reference, and what follows.
_NOT_READ = re.compile(r"\bthreadgroup\b(?![\w\s:]*(?:<[^;]*>[\w\s:]*)?[*&])[^;{}]*")


def preludes(text: str) -> list[str]:
    """The files of the ``metal`` folder that define what a kernel's text uses of Metal's."""
    return [file for word, file in PRELUDES.items() if word in text]


def cuda_header(prelude: str, header: str) -> str:
    """The ``header`` argument for ``mx.fast.cuda_kernel``: :func:`preludes`, then the kernel's."""
    return prelude + _without_address_spaces(header)


def cuda_body(source: str) -> str:
    """The ``source`` argument for ``mx.fast.cuda_kernel``.

    Raises:
        ValueError: A threadgroup variable cannot be translated.
    """
    attributes = "".join(
        f"  const {kind} {name} = msl_{name}();\n"
        for name, kind in ATTRIBUTES.items()
        if re.search(rf"\b{name}\b", source)
    )
    return attributes + _without_address_spaces(rewrite_definitions(source, _shared))


def _shared(kind: str, name: str, dimensions: str) -> str:
    # Several neighbours are stored in one access, which an array of halves would not allow.
    return f"__shared__ __align__(16) {kind} {name}{dimensions};"


def rewrite_definitions(body: str, spelling: Callable[[str, str, str], str]) -> str:
    """A kernel's body, without comments, with each threadgroup variable as ``spelling`` defines it.

    That is given the type of an element, the name, and dimensions as ``[2][3]``.

    Raises:
        ValueError: A definition reads otherwise than ``threadgroup T name[2][3];``. Left as it is,
            it would lose the word, and each thread would have a variable of its own.
    """
    body = _DEFINITION.sub(lambda found: spelling(*found.groups()), body)
    if left := _NOT_READ.search(body):
        raise ValueError(
            "a threadgroup variable must be defined by itself, as in 'threadgroup float a[2];', "
            f"but got {' '.join(left[0].split())!r}"
        )
    return body


def _without_address_spaces(text: str) -> str:
    return _ADDRESS_SPACES.sub("", _METAL_HEADER.sub("", text))

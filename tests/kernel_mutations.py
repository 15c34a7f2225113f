"""Faults planted in the kernels' sources, one at a time, and what notices them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

from kernel_devices import on_cpu
from metal_on_cpu.planting import found, planted

from mlx_tlstm.kernels import library

HEADER = "header"  # whichever has the text


class Mutation(NamedTuple):
    """In ``file``, the one place that reads ``right`` reads ``wrong`` instead."""

    file: str
    right: str
    wrong: str

    @classmethod
    def written(cls, file: str, text: str) -> Mutation:
        """From the source's text with one place changed, ``…{{right => wrong}}…``."""
        pattern = r"(.*)\{\{(.*) => (.*)\}\}(.*)"
        before, right, wrong, after = re.fullmatch(pattern, text, re.DOTALL).groups()
        return cls(file, before + right + after, before + wrong + after)

    def __str__(self) -> str:
        return re.sub(r"\s+", " ", f"{self.file}: {self.right} -> {self.wrong}")


@contextlib.contextmanager
def in_sources(mutation: Mutation) -> Iterator[None]:
    """The kernels that are built have the mutation."""
    read, places = library.source, 0

    def source(name: str) -> str:
        nonlocal places
        text = read(name)
        in_header = mutation.file == HEADER and name.endswith(".h") and mutation.right in text
        if name != mutation.file and not in_header:
            return text
        places += 1
        return planted(text, mutation.right, mutation.wrong)

    with mock.patch.object(library, "source", source):
        yield
    assert places, f"nothing read {mutation.file}"


def noticed(check: Callable[[], object], mutation: Mutation | None = None) -> str:
    """What ``check`` finds wrong with a mutation, or the sanitizer before it.

    Without a mutation nothing should be found.
    """
    with in_sources(mutation) if mutation else contextlib.nullcontext(), on_cpu(check=False):
        message = found(check)
    assert "error:" not in message, message  # of a source that does not compile
    return message

"""Where the tests of the kernels run them: on the CPU, or on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import metal_on_cpu
import mlx.core as mx
import pytest
from metal_on_cpu import standin
from metal_on_cpu.planting import found, planted

from mlx_tlstm.kernels import dispatch, library

#: For tests that compile kernels for the CPU.
needs_compiler = pytest.mark.skipif(
    metal_on_cpu.why_unavailable() is not None, reason=str(metal_on_cpu.why_unavailable())
)


@contextlib.contextmanager
def on_cpu(**options: Any) -> Iterator[list[standin.Call]]:
    """Kernels run on the CPU, sanitizing unless ``options`` say otherwise.

    The value is the list of launches. The test is skipped, with the reason, without a compiler.
    """
    reason = metal_on_cpu.why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    library.forget_built_kernels()
    try:
        with standin.installed(**options) as calls:
            yield calls
    finally:
        library.forget_built_kernels()


def noticed(check: Callable[[], str], file: str = "", right: str = "", wrong: str = "") -> str:
    """What ``check`` finds wrong with a fault in the kernels' sources, or the sanitizer before it.

    The fault is ``wrong`` in the one place that reads ``right``: of ``file``, or of the headers if
    that is no kernel's. Without a fault nothing should be found.
    """
    read, places = library.source, 0

    def source(name: str) -> str:
        nonlocal places
        text = read(name)
        in_header = not file.endswith(".metal") and name.endswith(".h") and right in text
        if not file or (name != file and not in_header):
            return text
        places += 1
        return planted(text, right, wrong)

    with mock.patch.object(library, "source", source), on_cpu(check=False):
        message = found(check)
    assert places or not file, f"nothing read {file}"
    assert "error:" not in message, message  # of a source that does not compile
    return message


@contextlib.contextmanager
def on_gpu(backend: str) -> Iterator[None]:
    """The default device is the GPU; skipped, with the reason, where it has no such kernels."""
    if not mx.is_available(mx.gpu):
        pytest.skip(f"no {backend} kernels here: MLX has no GPU")
    mx.set_default_device(mx.gpu)
    try:
        available, reason = dispatch.kernel_backend()
        if available != backend:
            pytest.skip(f"no {backend} kernels here: {reason or f'this GPU runs {available}'}")
        library.forget_built_kernels()
        yield
    finally:
        library.forget_built_kernels()
        mx.set_default_device(mx.cpu)


def counted(calls: list[standin.Call]) -> list[standin.Call]:
    """``calls``; a test that looks at them is skipped on a GPU."""
    if mx.default_device() == mx.gpu:
        pytest.skip("launches are counted on the CPU only")
    return calls

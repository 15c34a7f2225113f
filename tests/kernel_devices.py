"""Where the tests of the kernels run them: on the CPU, or on a GPU."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from typing import Any

import metal_on_cpu
import mlx.core as mx
import pytest
from metal_on_cpu import standin

from mlx_tlstm.kernels import dispatch, library
from mlx_tlstm.kernels.library import Kernel

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


def claims_gpu(
    monkeypatch: pytest.MonkeyPatch, architecture: str, cuda: bool = False, macos: str = "26.2"
) -> None:
    """MLX says that the default device is a GPU, Apple's or NVIDIA's, of an architecture."""
    monkeypatch.setattr(platform, "mac_ver", lambda: ("" if cuda else macos, ("", "", ""), ""))
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda *_: {"architecture": architecture})
    monkeypatch.setattr(mx.metal, "is_available", lambda: not cuda)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: cuda)


def counted(calls: list[standin.Call]) -> list[standin.Call]:
    """``calls``; a test that looks at them is skipped on a GPU."""
    if mx.default_device() == mx.gpu:
        pytest.skip("launches are counted on the CPU only")
    return calls


def computes_wrong(
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    output: int,
    factor: float,
    when: Callable[..., bool] = lambda inputs, **_: True,
) -> None:
    """The device multiplies an output of a kernel's launches by a factor.

    Sources are as they are: what finds a device's faults has to find them in every output, which
    no text names, and of a launch of its own, such as MLX's product, as well.

    Args:
        when: Of which launches, by what they are called with.
    """
    launch = Kernel.__call__

    def launched(self: Kernel, inputs: list[mx.array], **rest: Any) -> list[mx.array]:
        results = list(launch(self, inputs, **rest))
        if self.name == kernel and when(dict(zip(self.inputs, inputs, strict=True)), **rest):
            results[output] = results[output] * factor
        return results

    monkeypatch.setattr(Kernel, "__call__", launched)


def fails(
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    error: Exception,
    before: Callable[[], object] = lambda: None,
) -> None:
    """The device raises an error in place of a kernel's launches, and does something before."""
    launch = Kernel.__call__

    def launched(self: Kernel, inputs: list[mx.array], **rest: Any) -> list[mx.array]:
        if self.name == kernel:
            before()
            raise error
        return launch(self, inputs, **rest)

    monkeypatch.setattr(Kernel, "__call__", launched)


def fails_later() -> None:
    """Begin what MLX's stream on the CPU fails at after a while."""
    large = mx.ones((1000, 1000))
    singular = mx.zeros((3, 3)) + 0 * (large @ large)[0, 0]
    mx.async_eval(mx.linalg.inv(singular, stream=mx.cpu))

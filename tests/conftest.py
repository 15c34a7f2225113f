"""OpenBLAS has to be loaded before MLX, which importing the package first does."""

import mlx_tlstm  # noqa: F401, I001
from collections.abc import Iterator

import metal_on_cpu
import mlx.core as mx
import pytest
from metal_on_cpu import standin

from mlx_tlstm.kernels import dispatch, library

# Tolerances are those of float32 sums on a CPU; a GPU's matrix products may round to less.
mx.set_default_device(mx.cpu)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("metal", marks=pytest.mark.metal),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ]
)
def kernel_calls(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[standin.Call]]:
    """Kernels run: on the CPU in the sanitizing mode by default, on a GPU with -m metal or -m cuda.

    The value is the list of launches, which stays empty on a GPU. A test asks for the quick mode
    with ``@pytest.mark.standin(mode="fast")``.
    """
    library.forget_built_kernels()
    if request.param == "cpu":
        reason = metal_on_cpu.why_unavailable()
        if reason is not None:
            pytest.skip(reason)
        monkeypatch.setattr(dispatch, "kernel_backend", lambda: ("metal", ""))
        marker = request.node.get_closest_marker("standin")
        with standin.installed(**(marker.kwargs if marker else {})) as calls:
            yield calls
    else:
        mx.set_default_device(mx.gpu)
        try:
            available, reason = dispatch.kernel_backend()
            if available != request.param:
                pytest.skip(f"no {request.param} kernels here: {reason or f'MLX runs {available}'}")
            yield []
        finally:
            mx.set_default_device(mx.cpu)
    library.forget_built_kernels()

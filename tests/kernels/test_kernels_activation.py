"""The tRNN's activation kernel: values against float64, and planted bugs that have to be caught."""

import mlx.core as mx
import numpy as np
import pytest
from kernel_devices import counted, noticed

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import KernelBackend

GEOMETRY = Geometry((2, 3), (3, 2))


def error(dtype: mx.Dtype, output: bool, geometry: Geometry = GEOMETRY, M: int = 45) -> float:
    """Largest deviation, in units of half an ulp of the type, over the largest element."""
    rng = np.random.default_rng(2)
    shape = (3, *geometry.tensor_size, M)
    d_H, H = mx.array(rng.normal(size=shape)), mx.array(np.tanh(rng.normal(size=shape)))
    d_H, H = d_H.astype(mx.float32), H.astype(dtype)
    d_output = mx.array(rng.normal(size=(3, M))).astype(mx.float32) if output else None
    got = KernelBackend(geometry, None).tanh_gradient(d_H, d_output, H)
    assert got.dtype == dtype
    total = np.array(d_H).astype(np.float64)
    if d_output is not None:
        total.reshape(3, -1, M)[:, -1] += np.array(d_output)
    expected = total * (1 - np.array(H.astype(mx.float32)).astype(np.float64) ** 2)
    difference = np.abs(np.array(got.astype(mx.float32)) - expected).max()
    unit = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}[dtype]
    return difference / (unit * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("output", [False, True])
def test_matches_float64(kernel_calls, dtype, output):
    # Three roundings in float32, one to the type.
    assert error(dtype, output) < 4
    launches = [call.kernel for call in counted(kernel_calls)]
    assert launches == ["tanh_backward"]


def test_few_elements(kernel_calls):
    assert error(mx.float32, True, Geometry((1,), (2,)), M=2) < 4


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("element < hidden_shape[0] * G::LOCATIONS * M", "true"),
        ("element < hidden_shape[0]", "element < (hidden_shape[0] - 1)"),
        ("d_output_ndim > 1 && row % G::LOCATIONS == G::LOCATIONS - 1", "d_output_ndim > 1"),
        ("== G::LOCATIONS - 1", "== 0"),
        ("row / G::LOCATIONS * M + element % M", "row * M + element % M"),
        ("1.0f - H * H", "1.0f - H"),
        ("d_H += d_output", "d_H -= d_output"),
    ],
)
def test_planted_bug_is_caught(right, wrong):
    def check() -> str:
        return "wrong numbers" if error(mx.float32, True) > 4 else ""

    assert noticed(check, "tanh_backward.metal", right, wrong)

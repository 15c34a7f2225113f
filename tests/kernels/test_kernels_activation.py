"""The tRNN's activation kernel: values against float64, and planted bugs that have to be caught."""

import mlx.core as mx
import numpy as np
import pytest
from comparison import as_float64, wrong
from kernel_devices import counted
from kernel_mutations import Mutation, noticed

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import KernelBackend

GEOMETRY = Geometry((2, 3), (3, 2))


def errors(
    dtype: mx.Dtype, output: bool, geometry: Geometry = GEOMETRY, M: int = 45
) -> dict[str, float]:
    """What is wrong beyond three roundings in float32 and one to the type."""
    rng = np.random.default_rng(2)
    shape = (3, *geometry.tensor_size, M)
    d_H, H = mx.array(rng.normal(size=shape)), mx.array(np.tanh(rng.normal(size=shape)))
    d_H, H = d_H.astype(mx.float32), H.astype(dtype)
    d_output = mx.array(rng.normal(size=(3, M))).astype(mx.float32) if output else None
    got = KernelBackend(geometry, None).tanh_gradient(d_H, d_output, H)
    assert got.dtype == dtype
    total = as_float64(d_H)
    if d_output is not None:
        total.reshape(3, -1, M)[:, -1] += as_float64(d_output)
    expected = total * (1 - as_float64(H) ** 2)
    return wrong({"d_activation": got}, {"d_activation": expected}, 3 * 2.0**-24, rounded=True)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("output", [False, True])
def test_matches_float64(kernel_calls, dtype, output):
    assert errors(dtype, output) == {}
    launches = [call.kernel for call in counted(kernel_calls)]
    assert launches == ["tanh_backward"]


def test_few_elements(kernel_calls):
    assert errors(mx.float32, True, Geometry((1,), (2,)), M=2) == {}


@pytest.mark.parametrize(
    ("right", "planted"),
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
def test_planted_bug_is_caught(right, planted):
    mutation = Mutation("tanh_backward.metal", right, planted)
    assert noticed(lambda: errors(mx.float32, True), mutation)

"""The kernel that stacks the arrays of many steps."""

from __future__ import annotations

import mlx.core as mx
import pytest
from kernel_devices import counted
from metal_on_cpu import standin

from mlx_tlstm.kernels.stacking import stack


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.int32])
@pytest.mark.parametrize(
    ("count", "shape", "launches"),
    [(1, (3, 5), 0), (2, (3, 5), 1), (16, (2, 600), 1), (37, (3, 5), 4), (257, (8,), 20)],
)
def test_stack(
    count: int,
    shape: tuple[int, ...],
    launches: int,
    dtype: mx.Dtype,
    kernel_calls: list[standin.Call],
) -> None:
    arrays = [
        (mx.arange(mx.array(shape).prod().item()) + i).reshape(shape).astype(dtype)
        for i in range(count)
    ]
    stacked = stack(arrays)
    assert stacked.dtype == dtype
    assert mx.array_equal(stacked, mx.stack(arrays))
    assert len(counted(kernel_calls)) == launches


def test_stack_of_few_elements(kernel_calls: list[standin.Call]) -> None:
    arrays = [mx.array([i, i + 1]) for i in range(20)]
    assert mx.array_equal(stack(arrays), mx.stack(arrays))
    assert counted(kernel_calls) == []


def test_stack_refuses_unequal_arrays() -> None:
    for arrays in ([], [mx.zeros(8), mx.zeros(9)], [mx.zeros(8), mx.zeros(8, mx.int32)]):
        with pytest.raises(ValueError, match=r"\[stack\] 'arrays' must be one or more of one"):
            stack(arrays)

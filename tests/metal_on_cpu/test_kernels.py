"""The sample kernels give NumPy's results in every mode, order and element type."""

import numpy as np
import pytest

from metal_on_cpu import Kernel, MslError
from metal_on_cpu.samples import (
    DTYPES,
    TOLERANCE,
    conv2d,
    conv2d_case,
    gate,
    gate_case,
    largest_error,
    samples,
)

pytestmark = pytest.mark.usefixtures("compiler")

every_mode = pytest.mark.parametrize("mode", ["fast", "san"])
every_order = pytest.mark.parametrize("order", [0, 1, 2])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
every_sample = pytest.mark.parametrize("name", samples())


@every_mode
@every_order
@every_dtype
@every_sample
def test_samples(name, dtype, mode, order):
    kernel, case = samples(dtype)[name]
    (output,) = kernel(**case.call, mode=mode, order=order)
    assert output.dtype == case.call["output_dtypes"][0]
    assert largest_error(output, case.expected) < TOLERANCE[dtype.name]


@every_mode
def test_a_convolution_over_rows(mode):
    case = conv2d_case(3, 1, 10, 24, 32, (1, 3))
    (output,) = conv2d()(**case.call, mode=mode)
    assert largest_error(output, case.expected) < TOLERANCE["float32"]


@every_dtype
@every_sample
def test_both_modes_give_the_same_bits(name, dtype):
    """Neither optimisation nor instrumentation changes a number."""
    kernel, case = samples(dtype)[name]
    fast, sanitized = (kernel(**case.call, mode=mode)[0] for mode in ("fast", "san"))
    np.testing.assert_array_equal(fast.view(np.uint8), sanitized.view(np.uint8))


def test_stats_count_what_ran():
    case = conv2d_case(2, 4, 5, 20, 37, (3, 3))
    stats = {}
    conv2d()(**case.call, mode="san", stats=stats)
    threadgroups, taps, blocks = 2 * 2, 9, 2
    assert stats["threads"] == threadgroups * 128
    assert stats["threadgroup_barriers"] == threadgroups * (taps * blocks * 2 + 1)
    # 4 simdgroups of 2 x 2 tiles, two products of depth 8 each.
    assert stats["mma"] == threadgroups * taps * blocks * 4 * 4 * 2
    assert stats["threadgroup_bytes"] == 4 * (32 * 20 + 16 * 36 + 32 * 33)
    assert stats["stores"]["y"] == 40 * 37
    assert stats["loads"]["bias"] == 40 * 37


def test_random_orders_differ():
    """The output says who came last: a different thread for another seed."""
    kernel = Kernel("last", [], ["out"], "out[0] = int(thread_position_in_grid.x);")
    call = {
        "inputs": [],
        "grid": (256, 1, 1),
        "threadgroup": (64, 1, 1),
        "output_shapes": [(1,)],
        "output_dtypes": [np.int32],
        "mode": "fast",
    }
    assert kernel(**call, order=0)[0] == 255
    assert kernel(**call, order=1)[0] == 0
    assert len({int(kernel(**call, order=2, seed=seed)[0][0]) for seed in range(8)}) > 4


def test_threadgroups_at_the_edge_are_smaller():
    kernel = Kernel(
        "edge",
        [],
        ["size", "simdgroups"],
        "const uint i = thread_position_in_grid.x + 70 * thread_position_in_grid.y;\n"
        "size[i] = threads_per_threadgroup.x * 100 + threads_per_threadgroup.y;\n"
        "simdgroups[i] = simdgroups_per_threadgroup;",
    )
    size, simdgroups = kernel(
        inputs=[],
        grid=(70, 3, 1),
        threadgroup=(32, 2, 1),
        output_shapes=[(3, 70)] * 2,
        output_dtypes=[np.uint32] * 2,
        mode="san",
    )
    x = np.where(np.arange(70) < 64, 32, 6)
    y = np.array([2, 2, 1])[:, None]
    np.testing.assert_array_equal(size, x * 100 + y)
    np.testing.assert_array_equal(simdgroups, -(-x * y // 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": []}, "takes 3 inputs but got 0"),
        ({"output_shapes": []}, "has 1 outputs but got 0 shapes and 1 dtypes"),
        ({"mode": "slow"}, "mode must be 'fast' or 'san' but got 'slow'"),
        ({"order": 3}, "order must be 0, 1 or 2 but got 3"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        gate()(**{**gate_case(37, 9, 100).call, **changes})


def test_float64_is_refused():
    case = gate_case(37, 9, 100)
    case.call["inputs"][0] = case.call["inputs"][0].astype(np.float64)
    with pytest.raises(TypeError, match="no arrays of float64"):
        gate()(**case.call)


def test_metal_limits():
    call = gate_case(37, 9, 100).call
    with pytest.raises(MslError, match="threads per threadgroup: 1280"):
        gate()(**{**call, "grid": (64, 40, 1), "threadgroup": (32, 40, 1)})
    names = [f"input{i}" for i in range(31)]
    kernel = Kernel(
        "many", names, ["out"], "out[0] = " + " + ".join(f"{n}[0]" for n in names) + ";"
    )
    with pytest.raises(MslError, match="32 buffers, the limit is 31"):
        kernel(
            inputs=[np.ones(8, np.float32)] * 31,
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[(1,)],
            output_dtypes=[np.float32],
        )

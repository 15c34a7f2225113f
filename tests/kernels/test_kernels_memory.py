"""The memory kernels against the float64 reference.

They run in the sanitizing mode: out-of-bounds accesses, data races, uninitialised reads and outputs
never written are errors too. Tolerances: see ``memory_cases``.
"""

from __future__ import annotations

import math
import re

import memory_cases
import mlx.core as mx
import numpy as np
import pytest
from kernel_devices import counted, on_cpu
from memory_cases import Case
from metal_on_cpu import standin
from mlx.utils import tree_flatten
from reference import Specification

from mlx_tlstm.kernels import library
from mlx_tlstm.recurrence.contract import EPSILON


def tensor(P, K, norm=None, memory_convolution=True) -> Specification:
    return Specification(P, K, memory_convolution, norm)


BOTH = ((True, True),)
CASES = [
    Case(tensor((3,), (3,))),
    Case(tensor((3,), (2,), "channel"), hidden_size=40),
    Case(tensor((3,), (3,), "layer"), hidden_size=40, dtype=mx.bfloat16),
    Case(tensor((5,), (4,), "channel", False), dtype=mx.float16),
    Case(tensor((2,), (5,), "layer")),  # taps that reach across the whole tensor
    Case(tensor((2, 4), (3, 3), "channel"), dtype=mx.float16, steps=(*BOTH, (True, False))),
    Case(tensor((2, 4), (3, 2), "layer"), hidden_size=70, batch=3),
    Case(tensor((3, 2), (2, 4), None), dtype=mx.bfloat16, steps=((False, False), *BOTH)),
    Case(tensor((4, 1), (5, 2), "channel"), batch=1),
    Case(tensor((2, 3, 2), (3, 3, 3), "channel"), hidden_size=40, dtype=mx.bfloat16),
    Case(tensor((2, 3, 2), (2, 3, 4), "layer"), dtype=mx.float16),
    Case(tensor((4, 5), (3, 3), "layer", False), steps=((False, False), (False, True))),
    Case(tensor((3, 1, 2), (2, 5, 3), None, False), steps=(*BOTH, (True, False))),
    Case(tensor((1,), (3,), "channel"), hidden_size=40),
    Case(tensor((1, 1), (3, 2), "layer"), batch=1),
    # Every input has fewer than 8 elements, and comes in Metal's constant address space.
    Case(tensor((1,), (2,)), hidden_size=1, batch=1),
    Case(tensor((5, 4), (3, 3), "layer"), hidden_size=100, batch=3),  # a size of training
]
#: More than 32 taps, so that a lane holds several.
LARGE_KERNELS = [
    Case(tensor((2, 3), (6, 6), "channel")),
    Case(tensor((2, 3, 2), (5, 5, 5), "layer"), hidden_size=40),
]
CROSS_PRODUCT = [
    Case(tensor(P, K, norm, convolve), M, batch, dtype, ((False, output), (output, not output)))
    for P, K in [
        ((1,), (5,)),
        ((3,), (4,)),
        ((1, 1), (2, 3)),
        ((2, 4), (5, 2)),
        ((4, 2), (3, 4)),
        ((2, 3, 2), (2, 4, 3)),
        ((1, 2, 3), (5, 2, 2)),
    ]
    for norm in (None, "channel", "layer")
    for convolve in (True, False)
    for M, batch, dtype, output in [(7, 2, mx.float32, True), (40, 1, mx.bfloat16, False)]
]


@pytest.mark.parametrize(
    "case",
    [
        *CASES,
        *LARGE_KERNELS,
        *(pytest.param(case, marks=pytest.mark.slow) for case in CROSS_PRODUCT),
    ],
    ids=str,
)
def test_matches_reference(case: Case, kernel_calls: list[standin.Call]) -> None:
    given = memory_cases.arguments(case)
    assert memory_cases.wrong(memory_cases.compare_forward(case, given)) == {}
    assert memory_cases.wrong(memory_cases.compare_backward(case, given)) == {}


@pytest.mark.parametrize("case", [CASES[5], CASES[6], CASES[10]], ids=str)
def test_order_of_execution_changes_no_bit(case: Case) -> None:
    given, results = memory_cases.arguments(case), []
    for order in (0, 1, 2):
        with on_cpu(check=False, order=order):
            steps = memory_cases.forward(case, given)
            d_A, d_C, handed = memory_cases.backward(case, given, steps)
        results.append([a for _, a in tree_flatten([steps[-1], d_A, d_C, handed])])
    for other in results[1:]:
        assert all(mx.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("norm", [None, "channel"])
def test_saturated_gates(norm: str | None, kernel_calls: list[standin.Call]) -> None:
    """No overflow. Slopes are lost to rounding, so that gradients are compared absolutely."""
    case = Case(tensor((3,), (3,), norm), scale=300)
    given = memory_cases.arguments(case)
    assert memory_cases.wrong(memory_cases.compare_forward(case, given)) == {}
    for got, expected in memory_cases.compare_backward(case, given).values():
        np.testing.assert_allclose(np.array(got), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", [None, "channel", "layer"])
def test_empty_memory(norm: str | None, kernel_calls: list[standin.Call]) -> None:
    """Zero activations and memory: the deviation is 0, and only epsilon is in the root."""
    case = Case(tensor((3,), (3,), norm))
    given = memory_cases.arguments(case)
    given = given._replace(A=given.A * 0, cell=given.cell * 0)
    pairs = memory_cases.compare_forward(case, given)
    if norm is None:
        assert all(np.array(H).any() == 0 for H, _ in pairs.values())
    else:
        del pairs["C[0]"], pairs["C[1]"]  # zero on both sides
        assert memory_cases.wrong(pairs) == {}
    gradients = memory_cases.compare_backward(case, given)
    # What a gate multiplies is zero, so its gradient is.
    nonzero = {name: pair for name, pair in gradients.items() if np.any(pair[1])}
    assert {"d_C", "d_g[0]"} <= nonzero.keys()
    assert memory_cases.wrong(nonzero) == {}


@pytest.mark.parametrize(("norm", "threadgroups"), [(None, 4), ("channel", 4), ("layer", 2)])
@pytest.mark.parametrize("memory_convolution", [True, False])
def test_launches(
    norm: str | None, threadgroups: int, memory_convolution: bool, kernel_calls: list[standin.Call]
) -> None:
    """One a step each way, and one for the initial state where memory is convolved."""
    case = Case(tensor((2, 4), (3, 2), norm, memory_convolution))
    given = memory_cases.arguments(case)
    memory_cases.backward(case, given, memory_cases.forward(case, given))
    calls = counted(kernel_calls)
    expected = ["memory_forward"] * 2 + ["memory_backward"] * 2
    expected += ["memory_gather"] * memory_convolution
    assert [call.kernel for call in calls] == expected
    assert {call.grid[0] // call.threadgroup[0] for call in calls[:4]} == {threadgroups}


def test_bytes_read(kernel_calls: list[standin.Call]) -> None:
    """Each array once, but for the rows of memory and what metal/README.md names."""
    P, K, M, B = (3, 4), (3, 2), 40, 2
    case = Case(tensor(P, K, "channel"), M, B, steps=((False, False), (False, False)))
    given = memory_cases.arguments(case)
    memory_cases.backward(case, given, memory_cases.forward(case, given))
    calls = counted(kernel_calls)
    taps = math.prod(K)
    shifts = [[k - size // 2 for k in range(size)] for size in K]
    inside = (sum(size - abs(s) for s in axis) for size, axis in zip(P, shifts, strict=True))
    readers = math.prod(inside) / math.prod(P)
    A = 4 * M + taps
    forward = {"activation": A, "cell_before": M * taps, "norm_gain": M, "norm_bias": M}
    backward = {
        "d_hidden": M,
        "later_carried": M * readers,
        "later_kernels": taps,
        "later_gain": M,
        "later_bias": M,
        "activation": A + M,  # the forget gate a second time
        "cell_before": M * taps,
        "cell": 2 * M,
        "norm_gain": M,
        "norm_bias": M,
    }
    gather = {"carried": M * readers, "kernels": taps}
    rows = B * math.prod(P)
    for call, expected in [(calls[0], forward), (calls[3], backward), (calls[4], gather)]:
        counts = {name: round(rows * of_a_row) for name, of_a_row in expected.items()}
        assert {name: call.stats["loads"][name] for name in counts} == counts


FULL = Case(tensor((2, 3), (3, 2), "layer"), steps=(*BOTH, *BOTH))
BARE = Case(tensor((2, 3), (3, 2), None, False), steps=((False, False), (False, False)))


@pytest.mark.parametrize(
    "case",
    [
        FULL,
        pytest.param(BARE, marks=pytest.mark.slow),
        *(
            pytest.param(
                Case(tensor((2, 3), (3, 2), "channel"), dtype=dtype), marks=pytest.mark.slow
            )
            for dtype in (mx.float16, mx.bfloat16)
        ),
    ],
    ids=str,
)
def test_any_input_may_be_small(case: Case, type_checked: list[str]) -> None:
    given = memory_cases.arguments(case)
    memory_cases.backward(case, given, memory_cases.forward(case, given))
    assert len(type_checked) == (3 if case.spec.memory_convolution else 2)


def test_epsilon_is_that_of_the_plain_operations() -> None:
    (value,) = re.findall(r"EPSILON = (\S+)f;", library.source("memory.h"))
    assert float(value) == EPSILON

"""The convolution kernels against the float64 reference.

They run in the sanitizing mode: out-of-bounds accesses, data races, uninitialised reads and outputs
never written are errors too. Tolerances: see ``convolution_cases``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import convolution_cases
import mlx.core as mx
import pytest
from comparison import assert_close
from convolution_cases import Case
from kernel_devices import counted, on_cpu
from metal_on_cpu import standin

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import KernelBackend, tuning
from mlx_tlstm.kernels.tiles import CANDIDATES, Tile
from mlx_tlstm.recurrence.contract import Prepared

SMALL = Tile(8, 8, 8, (1, 1, 1))
CASES = [
    Case((3,), (3,), steps=1),
    Case((4,), (2,), 40, dtype=mx.float16, steps=9, tile=CANDIDATES[-3]),
    Case((5,), (4,), dtype=mx.bfloat16, cell="noconv", tile=SMALL, steps=3),
    Case((2,), (5,), 10, batch=3),  # taps that reach across the whole tensor
    Case((5, 7), (3, 3), 40, tile=CANDIDATES[0]),
    Case((4, 5), (3, 2), 40, dtype=mx.bfloat16, tile=CANDIDATES[3]),
    Case((4, 5), (2, 3), 18, dtype=mx.bfloat16, tile=CANDIDATES[1], steps=9),
    Case((5, 4), (3, 2), 30, tile=CANDIDATES[2]),
    Case((3, 4), (2, 3), 15, dtype=mx.float16, tile=CANDIDATES[4], steps=3),
    Case((3, 2), (2, 4), 18, dtype=mx.float16, tile=CANDIDATES[-2], steps=3),
    Case((4, 1), (5, 2), batch=1, dtype=mx.bfloat16, cell="trnn"),
    Case((2, 3, 2), (2, 3, 4), 10, dtype=mx.float16, cell="trnn"),
    Case((2, 3, 2), (3, 3, 3), 20, tile=CANDIDATES[-1]),
    Case((1, 1), (3, 2), batch=1, dtype=mx.bfloat16),
    # Every input has fewer than 8 elements, and comes in Metal's constant address space.
    Case((1,), (3,), 2, batch=1, cell="trnn"),
    # MLX's own products between kernels.
    Case((3,), (3,), steps=9, product=True),
    Case((5,), (4,), 12, dtype=mx.bfloat16, cell="noconv", steps=3, product=True),
    Case((3, 2), (2, 4), 18, batch=3, dtype=mx.float16, steps=1, product=True),
    Case((2, 3, 2), (2, 3, 4), 20, cell="trnn", product=True),
    Case((1, 1), (3, 2), 1, batch=1, cell="trnn", steps=10, product=True),
]
CROSS_PRODUCT = [
    Case(P, K, M, batch, dtype, tile, cell, steps)
    for P, K in [((6,), (3,)), ((2, 4), (3, 2)), ((2, 3, 2), (2, 5, 3))]
    for M, batch, steps in [(7, 2, 3), (40, 1, 10)]
    for dtype in (mx.float32, mx.float16, mx.bfloat16)
    for tile, cell in [*((tile, "tlstm") for tile in CANDIDATES), (None, "trnn")]
]
CROSS_PRODUCT += [
    dataclasses.replace(case, product=True) for case in CROSS_PRODUCT if case.tile is None
]


def assert_right(case: Case) -> None:
    given = convolution_cases.arguments(case)
    found, expected = (
        convolution_cases.compute(case, given),
        convolution_cases.expected(case, given),
    )
    assert_close(found, expected, convolution_cases.tolerance(case), rounded=True)


@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in CROSS_PRODUCT)],
    ids=str,
)
def test_matches_reference(case: Case, kernel_calls: list[standin.Call]) -> None:
    assert_right(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.tile is None and not c.product], ids=str)
def test_where_nothing_names_a_tile_beside_units_for_products(
    case: Case, kernel_calls: list[standin.Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA and an M5: the library's choice is MLX's product."""
    monkeypatch.setattr(tuning, "products_have_units", lambda dtype: True)
    monkeypatch.setattr(tuning, "_choice", tuning._choice.__wrapped__)
    assert_right(case)
    assert "convolution_unfold" in {call.kernel for call in counted(kernel_calls)}


@pytest.mark.parametrize("case", [CASES[1], CASES[6], CASES[9], CASES[16]], ids=str)
def test_order_of_execution_changes_no_bit(case: Case) -> None:
    given, results = convolution_cases.arguments(case), []
    for order in (0, 1, 2):
        with on_cpu(check=False, order=order):
            results.append(convolution_cases.compute(case, given).values())
    for other in results[1:]:
        assert all(mx.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("steps", "launches"), [(1, 1), (8, 1), (9, 2), (17, 3)])
def test_launches(steps: int, launches: int, kernel_calls: list[standin.Call]) -> None:
    """One for each of a step's two convolutions, and one for eight steps' weight gradients."""
    case = Case((3,), (3,), steps=steps)
    assert_right(case)
    assert [call.kernel for call in counted(kernel_calls)] == [
        "convolution_forward",
        "convolution_input_gradient",
        *["convolution_weight_gradient"] * launches,
    ]


@pytest.mark.parametrize(("steps", "stacked"), [(1, 0), (8, 3)])
def test_launches_around_products(
    steps: int, stacked: int, kernel_calls: list[standin.Call]
) -> None:
    """One before the forward product and one after the gradient's; of eight steps four."""
    case = Case((3,), (3,), steps=steps, product=True)
    assert_right(case)
    assert Counter(call.kernel for call in counted(kernel_calls)) == Counter(
        convolution_unfold=2, convolution_fold=1, stack=stacked
    )


def test_windows_of_few_steps_where_they_are_large(
    kernel_calls: list[standin.Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case((3,), (3,), steps=8, product=True)
    windows = 2 * 3 * 3 * 7
    monkeypatch.setattr("mlx_tlstm.ops.convolution._WEIGHT_GRADIENT_ELEMENTS", 3 * windows + 1)
    assert_right(case)
    written = [c.output_shapes[0] for c in counted(kernel_calls) if c.kernel.endswith("unfold")]
    # Of the forward pass; of eight steps by three.
    assert [rows // 6 for rows, _ in written] == [1, 3, 3, 2]


@pytest.mark.parametrize("tile", CANDIDATES, ids=str)
def test_threadgroup_memory(tile: Tile, kernel_calls: list[standin.Call]) -> None:
    """No kernel takes more than the tile says, and the one that takes the most takes that much."""
    calls = counted(kernel_calls)
    convolution_cases.compute(Case((2,), (2,), 8, tile=tile, steps=1), _SAME[tile])
    used = [call.stats["threadgroup_bytes"] for call in calls]
    assert max(used) == tile.threadgroup_bytes
    assert all(call.threadgroup == (tile.threads, 1, 1) for call in calls)


_SAME = {
    tile: convolution_cases.arguments(Case((2,), (2,), 8, tile=tile, steps=1))
    for tile in CANDIDATES
}


@pytest.mark.parametrize(
    "dtype",
    [
        mx.float32,
        pytest.param(mx.float16, marks=pytest.mark.slow),
        pytest.param(mx.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_any_input_may_be_small(dtype: mx.Dtype, type_checked: list[str]) -> None:
    case = Case((2, 3), (3, 2), 40, dtype=dtype, steps=9)
    given = convolution_cases.arguments(case)
    convolution_cases.compute(case, given)
    assert len(type_checked) == 4
    case = dataclasses.replace(case, product=True)
    convolution_cases.forward(case, given)
    convolution_cases.input_gradient(case, given)
    assert type_checked[4:] == ["convolution_unfold", "convolution_fold"]


def test_refuses_other_arrays() -> None:
    backend = KernelBackend(Geometry((2,), (2,)), None)
    H, x, W, b = mx.zeros((1, 2, 3)), mx.zeros((1, 3)), mx.zeros((3, 2, 3)), mx.zeros(3)
    with pytest.raises(ValueError, match="'dtype' must be float32, float16 or bfloat16 for all"):
        backend.convolution(H.astype(mx.float16), x, Prepared(W, b))
    with pytest.raises(ValueError, match="'dtype' must be float32, float16 or bfloat16 for all"):
        backend.convolution_gradient(H.astype(mx.int32), Prepared(W.astype(mx.int32), b))
    for series in (([], [], []), ([H], [x], [H, H])):
        with pytest.raises(ValueError, match="must be as many in all arguments, 1 or more"):
            backend.weight_gradient(*series)

"""The model of what kernels read and write, by hand and against counted accesses."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import pytest
from benchmarking import kernel_costs
from benchmarking.kernel_costs import Access, Cost

from mlx_tlstm.checking.chains import Problem, make_chain
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import tuning
from mlx_tlstm.kernels.convolution import STEPS
from mlx_tlstm.kernels.tiles import CANDIDATES, Tile

TILE = Tile(16, 16, 16, (1, 1, 1))


def test_forward_by_hand():
    # Two locations, two taps: the first reads the corner and itself, the second both locations.
    problem = Problem(Geometry((2,), (2,)), 3, 20, mx.float16)
    cost = kernel_costs.convolution_forward(problem, TILE)
    # 40 rows are 3 tiles of 16, 14 channels one.
    assert cost.buffers == {
        "hidden": Access(120, 2, loads=20 * 3 * 3),
        "projected": Access(60, 2, loads=20 * 3),
        "weight": Access(14 * 6, 2, loads=3 * 14 * 6),
        "bias": Access(14, 2, loads=40 * 14),
        "activation": Access(560, 2, stores=560),
    }
    assert cost.bytes_moved == 2 * (180 + 60 + 252 + 560 + 560)
    assert cost.bytes_least == 2 * (120 + 60 + 84 + 14 + 560)


def test_input_gradient_by_hand():
    problem = Problem(Geometry((2,), (2,)), 3, 20)
    cost = kernel_costs.convolution_input_gradient(problem, TILE)
    # 60 rows are 4 tiles; the corner is read once, the first location twice, the second once.
    assert cost.buffers["d_activation"].loads == 20 * 4 * 14
    assert cost.buffers["weight"].loads == 4 * 14 * 6
    assert cost.buffers["d_hidden"].stores == 120
    assert cost.buffers["d_projected"].stores == 60


def test_weight_gradient_by_hand():
    problem = Problem(Geometry((2,), (2,)), 7, 5)
    cost = kernel_costs.convolution_weight_gradient(problem, TILE)
    # 30 channels are 2 tiles; 2 · 8 columns (7 channels and a zero) and the bias are 2.
    assert cost.buffers["hidden"].loads == 2 * STEPS * 5 * 3 * 7
    assert cost.buffers["d_activation"].loads == 2 * STEPS * 10 * 30


def test_memory_by_hand():
    problem = Problem(Geometry((2,), (3,)), 4, 5, mx.bfloat16, norm=None)
    forward = kernel_costs.memory_forward(problem)
    assert forward.buffers["cell_before"] == Access(40, 4, loads=3 * 40)
    assert forward.buffers["activation"] == Access(10 * 19, 2, loads=10 * 19)
    backward = kernel_costs.memory_backward(problem)
    # Each of two locations has two readers.
    assert backward.buffers["later_carried"].loads == 5 * 4 * 4
    assert backward.buffers["later_kernels"].loads == 10 * 3


# Sizes that no tile divides, channels that do and do not pack, boundaries on every side.
PROBLEMS = {
    "one axis": Problem(Geometry((3,), (3,)), 7, 9, norm=None),
    "two axes": Problem(Geometry((2, 4), (3, 2)), 8, 3, mx.float16, norm="channel"),
    "three axes": Problem(Geometry((2, 1, 3), (2, 3, 4)), 6, 2, norm="layer"),
    "no memory convolution": Problem(Geometry((3,), (4,)), 5, 4, memory_convolution=False),
}


def series(name: str) -> str:
    """Name of the buffer, or of the series that it is one of."""
    stem, _, number = name.rpartition("_")
    return stem if number.isdigit() else name


def counted(call, kind: str) -> Counter:
    counts = Counter()
    for name, count in call.stats[kind].items():
        counts[series(name)] += count
    return counts


def packs(cost: Cost, problem: Problem) -> dict[str, int]:
    """Elements of one access by buffer: the convolutions read four neighbours at once, which the
    CPU does by 8 bytes where rows are a multiple of four long, else one by one."""
    if not cost.kernel.startswith("convolution"):
        return {}
    whole = 8 // problem.dtype.size
    by_M, by_O = (1 if n % 4 else whole for n in (problem.hidden_size, problem.channels))
    return {"hidden": by_M, "projected": by_M, "weight": by_M, "d_activation": by_O}


def compare(call, cost: Cost, problem: Problem) -> None:
    """Loads and stores of every buffer that the model has, exactly, and no others."""
    loads, stores = counted(call, "loads"), counted(call, "stores")
    assert call.kernel == cost.kernel
    sizes = packs(cost, problem)
    for name, access in cost.buffers.items():
        # Every lane of a simdgroup reads its row's statistics, which the model counts once.
        factor = 32 if (cost.kernel, name) == ("memory_backward", "statistics") else 1
        counts = (loads[name] * sizes.get(name, 1), stores[name])
        assert counts == (factor * access.loads, access.stores), name
    for name in (loads | stores).keys() - cost.buffers.keys():
        # One zero stands for what a variant does not hand over; shapes and axes are not counted.
        assert loads[name] == 0 or name.endswith(("_shape", "_ndim")), name
        assert stores[name] <= 1, name


@pytest.mark.standin(check=False)
@pytest.mark.parametrize("name", PROBLEMS)
def test_model_counts_every_access(kernel_calls, name):
    if mx.default_device() == mx.gpu:
        pytest.skip("accesses are counted by the stand-in")
    problem = PROBLEMS[name]
    for tile in (CANDIDATES[-1], CANDIDATES[-2]):
        for kernel in ("convolution_forward", "convolution_input_gradient"):
            kernel_calls.clear()
            with tuning.forced(tile):
                make_chain(problem, kernel).run(1)
            compare(kernel_calls[-1], getattr(kernel_costs, kernel)(problem, tile), problem)
        kernel_calls.clear()
        with tuning.forced(tile):
            make_chain(problem, "convolution_weight_gradient").run(1)
        cost = kernel_costs.convolution_weight_gradient(problem, tile)
        compare(kernel_calls[-1], cost, problem)
    for kernel in ("memory_forward", "memory_backward"):
        kernel_calls.clear()
        make_chain(problem, kernel).run(1)
        compare(kernel_calls[-1], getattr(kernel_costs, kernel)(problem), problem)

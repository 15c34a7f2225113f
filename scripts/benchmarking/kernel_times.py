"""The benchmark's table of kernels: the time of a launch, and what it moves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import mlx.core as mx

from benchmarking.kernel_costs import Cost, step_costs
from benchmarking.sizes import KERNEL_SIZE, Size
from benchmarking.tables import NOT_RUN, Table
from mlx_tlstm.checking.chains import CHAINS, Problem, bare_product, label, make_chain, products_of
from mlx_tlstm.checking.timing import Timing, measure
from mlx_tlstm.checks import dtype_name
from mlx_tlstm.kernels import convolution, dispatch, tuning
from mlx_tlstm.kernels.tiles import Tile

LAUNCHES = 10  # of a kernel, timed together


def kernels_table(
    sizes: Iterable[Size], dtype: mx.Dtype, options: dict[str, Any]
) -> Iterator[list[Table]]:
    """Each kernel's launch: its time where kernels run, and what it moves by its access pattern.

    The table so far, after each size.
    """
    available, _ = dispatch.kernel_backend()
    rows, timings = [], {}
    title = f"Launches, K={KERNEL_SIZE}, channel normalisation, {dtype_name(dtype)}"
    for size in sizes:
        problem = size.problem(dtype)
        # None where MLX's own product takes a kernel's place.
        tiles = {name: tuning.select(product) for name, product in products_of(problem).items()}
        launched = {name: tile for name, tile in tiles.items() if tile is not None}
        costs = {cost.kernel: cost for cost in step_costs(problem, launched)}
        timing = timings[f"kernels, {size}"] = _timings(problem, options) if available else {}
        rows += [_row(size, name, tiles.get(name), costs.get(name), timing) for name in CHAINS]
        yield [Table(f"{title}: milliseconds of one", rows, timings)]


def _timings(problem: Problem, options: dict[str, Any]) -> dict[str, Timing]:
    """Of each kernel by name and, by ``name product``, of the bare product in its place."""
    candidates = {}
    for name in CHAINS:
        chains = {name: make_chain(problem, name), f"{name} product": bare_product(problem, name)}
        candidates |= {
            key: lambda chain=chain: chain.run(LAUNCHES)
            for key, chain in chains.items()
            if chain is not None
        }
    return measure(candidates, **options)


def _row(
    size: Size, name: str, tile: Tile | None, cost: Cost | None, timing: Mapping[str, Timing]
) -> dict[str, str]:
    memory = name.startswith("memory")
    milliseconds, share = NOT_RUN, "–" if memory else NOT_RUN
    if name in timing:
        product = timing.get(f"{name} product")
        milliseconds = f"{timing[name].median / LAUNCHES:.4f}"
        share = "–" if product is None else f"{100 * product.ratio(timing[name]):.0f} %"
    by_step = 1 / convolution.STEPS if name == convolution.WEIGHT_GRADIENT.name else 1
    moved = ("–",) * 3
    if cost is not None:
        bytes_ = (cost.bytes_moved, cost.bytes_least)
        moved = (*(f"{b / 1e6:.2f}" for b in bytes_), f"{bytes_[0] / bytes_[1]:.1f}")
    return {
        "size": str(size),
        "kernel": name,
        "tile": "–" if memory else label(tile),
        "ms": milliseconds,
        "of product": share,
        "a step": f"{by_step:g}",
        **dict(zip(("MB moved", "least", "ratio"), moved, strict=True)),
    }

"""The benchmark's tables of layers and kernels at the sizes that the kernels are meant for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import mlx.core as mx

import mlx_tlstm
from benchmarking.baselines import INPUT_SIZE, KERNEL_SIZE, Size, TorchProcess
from benchmarking.kernel_costs import Cost, step_costs
from benchmarking.passes import check_against_torch, load_into_torch, randomized
from benchmarking.problems import problem_of
from benchmarking.report import Table
from benchmarking.tables import settings_of
from mlx_tlstm.checking.chains import CHAINS, Problem, asked, bare_product, bare_products, label
from mlx_tlstm.checking.passes import Pass, operations_per_step
from mlx_tlstm.checking.timing import Timing, measure
from mlx_tlstm.kernels import convolution, dispatch, tuning
from mlx_tlstm.kernels.tiles import Tile

NOT_RUN = "not run"
LAUNCHES = 10  # of a kernel, timed together

# Results are compared over few steps: over many, rounding errors grow with the gradient.
_CHECKED_STEPS = 8


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[-1]


def _groups(sizes: Iterable[Size]) -> list[list[Size]]:
    """Sizes that differ in depth only together, so that their times can be compared."""
    groups: dict[tuple, list[Size]] = {}
    for size in sizes:
        key = (len(size.tensor_size), size.hidden_size, size.batch_size, size.length)
        groups.setdefault(key, []).append(size)
    return list(groups.values())


class _Candidates:
    """What is timed side by side for one group, and the layers' operations a step."""

    def __init__(self, dtype: mx.Dtype, torch: TorchProcess | None) -> None:
        self.runs: dict[str, Callable[[], object]] = {}
        self.operations: dict[str, float] = {}
        self._dtype = dtype
        self._torch = torch

    def add_tlstm(self, size: Size) -> None:
        layer = randomized(mlx_tlstm.TLSTM(**settings_of(size)))
        kinds = [("eager", False)] if self._torch else []
        if self._torch and self._torch.description["compiles"]:
            kinds.append(("compiled", True))
        settings = {
            f"{size} {name}": settings_of(size) | {"compiled": compiled} for name, compiled in kinds
        }
        self._add(f"{size}", layer, size, "tlstm", settings)
        problem = problem_of(size, self._dtype)
        self.runs[f"{size} products"] = bare_products(problem, size.length + layer.delay)

    def add_stacked(self, size: Size) -> None:
        depth = max(size.tensor_size)
        layer = randomized(mlx_tlstm.StackedLSTM(INPUT_SIZE, size.hidden_size, depth))
        cudnn = self._torch and self._torch.description["cudnn"]
        settings = {f"{size} cuDNN": {"depth": depth}} if cudnn else {}
        self._add(f"{size} stacked", layer, size, "stacked", settings)

    def _add(
        self,
        name: str,
        layer: Any,
        size: Size,
        kind: str,
        settings: Mapping[str, dict[str, Any]],
    ) -> None:
        """The layer's pass and PyTorch's, each by its name and the arguments it needs there."""
        for theirs, arguments in settings.items():
            checked = Pass(layer, size.batch_size, min(size.length, _CHECKED_STEPS))
            check_against_torch(checked, self._torch, arguments, kind, theirs)
        layer.set_dtype(self._dtype)
        timed = Pass(layer, size.batch_size, size.length)
        self.runs[name] = timed.run
        self.operations[name] = operations_per_step(layer)
        for theirs, arguments in settings.items():
            load_into_torch(timed, self._torch, arguments, kind, theirs)
            self.runs[theirs] = lambda theirs=theirs: self._torch.ask("run", theirs)


def _against(ours: Timing, theirs: Timing | None, size: Size) -> tuple[str, str]:
    """Cells: the other's time, and ours divided by it."""
    if theirs is None:
        return NOT_RUN, NOT_RUN
    return f"{size.unit(theirs.median):.4f}", f"{ours.ratio(theirs):.2f}"


def _measured(ours: Timing, first: Timing, size: Size, operations: float) -> tuple[str, ...]:
    low, high = (size.unit(quartile) for quartile in ours.quartiles)
    return (
        str(size),
        f"{size.unit(ours.median):.4f}",
        f"{low:.4f} – {high:.4f}",
        "–" if ours is first else f"{ours.ratio(first):.2f}",
        f"{operations:.1f}",
    )


def layer_tables(
    sizes: Iterable[Size], dtype: mx.Dtype, torch: TorchProcess | None, options: dict[str, Any]
) -> list[Table]:
    """tLSTMs with channel normalisation, and stacked LSTMs of the same depths.

    Args:
        sizes: Those that differ only in P are timed side by side and compared with the first.
        dtype: Type of the weights.
        torch: PyTorch, if it takes part.
        options: Of :func:`mlx_tlstm.checking.timing.measure`.
    """
    tensor_rows, stacked_rows, timings = [], [], {}
    for group in _groups(sizes):
        candidates = _Candidates(dtype, torch)
        for size in group:
            candidates.add_tlstm(size)
            candidates.add_stacked(size)
        timing = measure(candidates.runs, **options)
        timings[", ".join(map(str, group))] = timing
        if torch is not None:
            torch.ask("drop")
        for size in group:
            ours, stacked = timing[str(size)], timing[f"{size} stacked"]
            operations = candidates.operations
            tensor_rows.append(
                (
                    *_measured(ours, timing[str(group[0])], size, operations[str(size)]),
                    *_against(ours, timing[f"{size} products"], size),
                    *_against(ours, timing.get(f"{size} eager"), size),
                    *_against(ours, timing.get(f"{size} compiled"), size),
                    f"{ours.peak_bytes / 2**20:.0f}",
                    str(len(ours.milliseconds)),
                )
            )
            name, first = f"{size} stacked", timing[f"{group[0]} stacked"]
            stacked_rows.append(
                (
                    *_measured(stacked, first, size, operations[name]),
                    *_against(stacked, timing.get(f"{size} cuDNN"), size),
                    f"{stacked.peak_bytes / 2**20:.0f}",
                    str(len(stacked.milliseconds)),
                )
            )
    first_columns = ("size", "ms", "quartiles", "to first", "operations")
    last_columns = ("peak MiB", "rounds")
    others = ("products", "ratio", "PyTorch", "ratio", "compiled", "ratio")
    title = f"K={KERNEL_SIZE}, memory convolution, channel normalisation, R={INPUT_SIZE}"
    return [
        Table(
            f"tLSTM, {title}, {_name(dtype)}",
            (*first_columns, *others, *last_columns),
            tensor_rows,
            timings,
        ),
        Table(
            f"Stacked LSTM as deep as the tLSTM's P, R={INPUT_SIZE}, {_name(dtype)}",
            (*first_columns, "cuDNN", "ratio", *last_columns),
            stacked_rows,
            {},
        ),
    ]


def _tiles(problem: Problem) -> dict[str, Tile | None]:
    """The tile of each convolution kernel, ``None`` where plain operations take its place."""
    kernels = (convolution.FORWARD, convolution.INPUT_GRADIENT, convolution.WEIGHT_GRADIENT)
    return {k.name: tuning.select(asked(CHAINS[k.name](problem))) for k in kernels}


def _kernel_timings(problem: Problem, options: dict[str, Any]) -> dict[str, Timing]:
    """Of each kernel by name and, by ``name product``, of the bare product in its place."""
    candidates = {}
    for name, make in CHAINS.items():
        chains = {name: make(problem), f"{name} product": bare_product(problem, name)}
        candidates |= {
            key: lambda chain=chain: chain.run(LAUNCHES)
            for key, chain in chains.items()
            if chain is not None
        }
    return measure(candidates, **options)


def _kernel_row(
    size: Size, name: str, tile: Tile | None, cost: Cost | None, timing: Mapping[str, Timing]
) -> tuple[str, ...]:
    milliseconds = share = NOT_RUN
    if name in timing:
        product = timing.get(f"{name} product")
        milliseconds = f"{timing[name].median / LAUNCHES:.4f}"
        share = "–" if product is None else f"{100 * product.ratio(timing[name]):.0f} %"
    elif name.startswith("memory"):
        share = "–"
    by_step = 1 / convolution.STEPS if name == convolution.WEIGHT_GRADIENT.name else 1
    moved = ("–",) * 3
    if cost is not None:
        megabytes = (cost.bytes_moved / 1e6, cost.bytes_least / 1e6)
        moved = (*(f"{mb:.2f}" for mb in megabytes), f"{cost.bytes_moved / cost.bytes_least:.1f}")
    return (
        str(size),
        name,
        "–" if name.startswith("memory") else label(tile),
        milliseconds,
        share,
        f"{by_step:g}",
        *moved,
    )


def kernels_table(sizes: Iterable[Size], dtype: mx.Dtype, options: dict[str, Any]) -> Table:
    """Each kernel's launch: its time where kernels run, and what it moves by its access pattern."""
    available, _ = dispatch.kernel_backend()
    rows, timings = [], {}
    for size in sizes:
        problem = problem_of(size, dtype)
        tiles = _tiles(problem)
        costs = {
            cost.kernel: cost
            for cost in step_costs(problem, {n: t for n, t in tiles.items() if t is not None})
        }
        timing = _kernel_timings(problem, options) if available else {}
        timings[f"kernels, {size}"] = timing
        rows += [
            _kernel_row(size, name, tiles.get(name), costs.get(name), timing) for name in CHAINS
        ]
    header = ("size", "kernel", "tile", "ms", "of product", "a step", "MB moved", "least", "ratio")
    title = f"Launches, K={KERNEL_SIZE}, channel normalisation, {_name(dtype)}: milliseconds of one"
    return Table(title, header, rows, timings)

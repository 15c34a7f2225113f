"""The benchmark's tables of layers: beside PyTorch and bare products, and over the depth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import mlx.core as mx

import mlx_tlstm
from benchmarking import pytorch_process
from benchmarking.products import bare_products, layer_products, linear_products
from benchmarking.pytorch_process import TorchProcess, randomized
from benchmarking.sizes import INPUT_SIZE, KERNEL_SIZE, Size
from benchmarking.tables import NOT_RUN, Table
from mlx_tlstm.checking import chains
from mlx_tlstm.checking.passes import Pass, operations_per_step
from mlx_tlstm.checking.timing import Timing, measure
from mlx_tlstm.checks import dtype_name


def layer_tables(
    sizes: Iterable[Size],
    dtype: mx.Dtype,
    torch: TorchProcess | None,
    options: dict[str, Any],
    stacked: bool = True,
) -> Iterator[list[Table]]:
    """tLSTMs with channel normalisation and, if asked for, stacked LSTMs of the same depths.

    The tables so far, after each group of sizes.

    Args:
        sizes: Those that differ only in P are timed side by side and compared with the first.
        dtype: Type of the weights.
        torch: PyTorch, if it takes part.
        options: Of :func:`mlx_tlstm.checking.timing.measure`.
        stacked: Whether the stacked LSTMs have a table of their own.
    """
    tensor_rows, stacked_rows, timings = [], [], {}
    layers = f"K={KERNEL_SIZE}, memory convolution, channel normalisation, R={INPUT_SIZE}"
    tables = [Table(f"tLSTM, {layers}, {dtype_name(dtype)}", tensor_rows, timings)]
    if stacked:
        title = f"Stacked LSTM as deep as the tLSTM's P, R={INPUT_SIZE}, {dtype_name(dtype)}"
        tables.append(Table(title, stacked_rows))
    for group in _groups(sizes):
        candidates = _Candidates(dtype, torch)
        for size in group:
            candidates.add_tlstm(size)
            if stacked:
                candidates.add_stacked(size)
        timing = timings[", ".join(map(str, group))] = measure(candidates.runs, **options)
        if torch is not None:
            torch.ask("drop")
        row = candidates.row
        others = {"products": "products", "PyTorch": "eager", "compiled": "compiled"}
        tensor_rows += [row(timing, size, group[0], "", others) for size in group]
        if stacked:
            others = {"cuDNN": "cuDNN"}
            stacked_rows += [row(timing, size, group[0], " stacked", others) for size in group]
        yield tables


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
        self._dtype, self._torch = dtype, torch
        self._offers = torch.description if torch is not None else {}

    def add_tlstm(self, size: Size) -> None:
        layer = randomized(mlx_tlstm.TLSTM(**size.settings()))
        kinds = {"eager": False} if self._torch else {}
        if self._offers.get("compiles"):
            kinds["compiled"] = True
        settings = {
            f"{size} {kind}": size.settings() | {"compiled": compiled}
            for kind, compiled in kinds.items()
        }
        self._add(f"{size}", layer, size, "tlstm", settings)
        self.runs[f"{size} products"] = self._products(size, layer)

    def _products(self, size: Size, layer: Any) -> Callable[[], None]:
        """The tLSTM's bare products; on a GPU, where they would run side by side, one by one."""
        if mx.default_device() == mx.gpu:
            problem = size.problem(self._dtype)
            return chains.products_in_turn(problem, size.length + layer.delay)
        rows = size.length * size.batch_size
        products = [
            *layer_products(layer, size.batch_size, size.length),
            *linear_products(rows, INPUT_SIZE, size.hidden_size),
        ]
        return bare_products(products, self._dtype)

    def add_stacked(self, size: Size) -> None:
        depth = max(size.tensor_size)
        layer = randomized(mlx_tlstm.StackedLSTM(INPUT_SIZE, size.hidden_size, depth))
        settings = {f"{size} cuDNN": {"depth": depth}} if self._offers.get("cudnn") else {}
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
        for arguments in settings.values():
            shape = (size.batch_size, size.length)
            pytorch_process.check(layer, shape, self._torch, arguments, kind)
        layer.set_dtype(self._dtype)
        timed = Pass(layer, size.batch_size, size.length)
        self.runs[name] = timed.run
        self.operations[name] = operations_per_step(layer)
        for theirs, arguments in settings.items():
            pytorch_process.load(timed, self._torch, arguments, kind, theirs)
            self.runs[theirs] = lambda theirs=theirs: self._torch.ask("run", theirs)

    def row(
        self,
        timing: Mapping[str, Timing],
        size: Size,
        first: Size,
        layer: str,
        others: Mapping[str, str],
    ) -> dict[str, str]:
        """A layer's cells; ``others`` has what stands beside it, by the column's name."""
        name = f"{size}{layer}"
        ours = timing[name]
        low, high = (size.unit(quartile) for quartile in ours.quartiles)
        to_first = "–" if size == first else f"{ours.ratio(timing[f'{first}{layer}']):.2f}"
        row = {
            "size": str(size),
            "ms": f"{size.unit(ours.median):.4f}",
            "quartiles": f"{low:.4f} – {high:.4f}",
            "to first": to_first,
            "operations": f"{self.operations[name]:.1f}",
        }
        for column, other in others.items():
            theirs = timing.get(f"{size} {other}")
            row[column] = f"{size.unit(theirs.median):.4f}" if theirs else NOT_RUN
            row[f"to {column}"] = f"{ours.ratio(theirs):.2f}" if theirs else NOT_RUN
        peak = f"{ours.peak_bytes / 2**20:.0f}"
        return row | {"peak MiB": peak, "rounds": str(len(ours.milliseconds))}

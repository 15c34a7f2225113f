"""The benchmark's table of ways to run one LSTM cell over a sequence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from benchmarking.tables import Table
from mlx_tlstm import Recurrent
from mlx_tlstm.checking.passes import Pass
from mlx_tlstm.checking.timing import measure

LOOP_LENGTHS = (98, 196, 392, 784, 1568)  # up to two MNIST images, pixel by pixel
INPUT_SIZE, HIDDEN_SIZE, BATCH_SIZE = 28, 100, 8


class Cell(nn.Module):
    """One step of ``mlx.nn.LSTM``, with the arrays of such a layer."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.Wx, self.Wh, self.bias = lstm.Wx, lstm.Wh, lstm.bias
        self.hidden_size = lstm.hidden_size

    def initial_state(self, batch_size: int) -> tuple[mx.array, mx.array]:
        return (mx.zeros((batch_size, self.hidden_size)), mx.zeros((batch_size, self.hidden_size)))

    def __call__(self, x: mx.array, state: tuple[mx.array, mx.array]) -> tuple[mx.array, Any]:
        hidden, cell = state
        gates = mx.addmm(self.bias, x, self.Wx.T) + hidden @ self.Wh.T
        i, f, g, o = mx.split(gates, 4, axis=-1)
        cell = mx.sigmoid(f) * cell + mx.sigmoid(i) * mx.tanh(g)
        hidden = mx.sigmoid(o) * mx.tanh(cell)
        return hidden, (hidden, cell)


class Loop(nn.Module):
    """The loop that one writes first."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def __call__(self, x: mx.array) -> tuple[mx.array, Any]:
        state, outputs = self.cell.initial_state(x.shape[0]), []
        for t in range(x.shape[1]):
            output, state = self.cell(x[:, t], state)
            outputs.append(output)
        return mx.stack(outputs, axis=1), state


#: Ways to run the arrays of an LSTM over T steps.
WAYS: dict[str, Callable[[nn.LSTM, int], nn.Module]] = {
    "loop over x[:, t]": lambda lstm, length: Loop(Cell(lstm)),
    "mlx.nn.LSTM": lambda lstm, length: lstm,
    "scan": lambda lstm, length: Recurrent(Cell(lstm)),
    "scan, checkpoint=√T": lambda lstm, length: Recurrent(Cell(lstm), math.isqrt(length)),
}


def loops_table(
    options: dict[str, Any],
    lengths: Sequence[int] = LOOP_LENGTHS,
    hidden_size: int = HIDDEN_SIZE,
) -> Iterator[list[Table]]:
    """Times and peak memory of forward and backward passes, not compiled, beside each other.

    The table so far, after each length.

    Raises:
        RuntimeError: One of them computes something else.
    """
    lstm = nn.LSTM(INPUT_SIZE, hidden_size)
    sizes = (BATCH_SIZE, lengths[0])
    _require_same({name: _pass(way(lstm, lengths[0]), *sizes) for name, way in WAYS.items()})
    rows, timings = [], {}
    title = f"One LSTM cell over T steps, R={INPUT_SIZE}, M={hidden_size}, B={BATCH_SIZE}"
    for length in lengths:
        passes = {
            name: _pass(way(lstm, length), BATCH_SIZE, length).run for name, way in WAYS.items()
        }
        timing = timings[f"T={length}"] = measure(passes, **options)
        rows += [
            {
                "way": name,
                "T": str(length),
                "ms": f"{timing[name].median:.0f}",
                "ms per T": f"{timing[name].median / length:.2f}",
                "peak MiB": f"{timing[name].peak_bytes / 2**20:.0f}",
            }
            for name in WAYS
        ]
        rows.sort(key=lambda row: list(WAYS).index(row["way"]))
        yield [Table(title, rows, timings)]


def _pass(layer: nn.Module, batch_size: int, length: int) -> Pass:
    return Pass(layer, batch_size, length, INPUT_SIZE, compiled=False)


def _require_same(passes: dict[str, Pass]) -> None:
    """Raise unless all passes give the same outputs and gradients, up to rounding."""
    (_, first), *others = passes.items()
    expected = tree_flatten(first.run())
    for name, other in others:
        for (_, a), (_, b) in zip(tree_flatten(other.run()), expected, strict=True):
            if not mx.allclose(a, b, rtol=1e-3, atol=1e-4):
                raise RuntimeError(f"{name} computes something else than {next(iter(passes))}")

"""Inputs that come one by one: a stream, and the table of several."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from benchmarking.sizes import INPUT_SIZE
from benchmarking.tables import Table
from mlx_tlstm import SequenceModel, StreamingSession, make_layer
from mlx_tlstm.checking.timing import measure

STACKED = "slstm"


class Stream:
    """A session in the middle of a stream, so that every push has an output."""

    def __init__(self, variant: str, hidden_size: int, depth: int, batch_size: int) -> None:
        model = SequenceModel(make_layer(variant, INPUT_SIZE, hidden_size, depth), INPUT_SIZE)
        self.session = StreamingSession(model.eval())
        self.x = mx.random.normal((batch_size, INPUT_SIZE))
        mx.eval(model.parameters(), self.x)
        self.delay = self.session.delay
        for _ in range(self.delay):
            self.session.push(self.x)

    def wait(self, inputs: int) -> None:
        """Push, and read each output before the next push."""
        for _ in range(inputs):
            mx.eval(self.session.push(self.x))

    def flow(self, inputs: int) -> None:
        """Push without waiting, and read at the end."""
        mx.eval([self.session.push(self.x) for _ in range(inputs)])


def latency_table(
    variant: str,
    hidden_size: int,
    batch_size: int,
    depths: tuple[int, ...],
    inputs: int,
    rounds: int,
    warmup: int,
) -> Table:
    """A row a layer and depth; milliseconds are those of one input."""
    names = (variant, STACKED)
    streams = {
        (name, depth): Stream(name, hidden_size, depth, batch_size)
        for depth in depths
        for name in names
    }
    candidates: dict[str, Callable[[], object]] = {}
    for (name, depth), stream in streams.items():
        for way in (stream.wait, stream.flow):
            candidates[f"{name}, L={depth}, {way.__name__}"] = lambda way=way: way(inputs)
    timings = measure(candidates, rounds=rounds, warmup=warmup)

    rows = []
    for (name, depth), stream in streams.items():
        waited, flowing, first, stacked = (
            timings[f"{one}, L={L}, {way}"]
            for one, L, way in (
                (name, depth, "wait"),
                (name, depth, "flow"),
                (name, depths[0], "wait"),
                (STACKED, depth, "wait"),
            )
        )
        each = waited.median / inputs
        low, high = (quartile / inputs for quartile in waited.quartiles)
        rows.append(
            {
                "layer": f"{name}, L={depth}",
                "ms an input": f"{each:.3f}",
                "quartiles": f"{low:.3f}–{high:.3f}",
                f"to L={depths[0]}": f"{waited.ratio(first):.2f}",
                "to stacked": f"{waited.ratio(stacked):.2f}",
                "answer, ms": f"{each * (1 + stream.delay):.3f}",
                "inputs/s": f"{1e3 * batch_size * inputs / flowing.median:,.0f}",
            }
        )
    title = f"Streaming, M={hidden_size}, B={batch_size}, R=S={INPUT_SIZE}, {inputs} inputs a round"
    return Table(title, rows, {"streaming": timings})

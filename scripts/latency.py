"""Time inputs that come one by one, through a tLSTM and a stacked LSTM of the same depth.

An input takes a time step of the tLSTM whatever its depth, and all layers of the stacked LSTM, one
after the other. The tLSTM's answer comes L - 1 inputs later; the column "answer" is what it takes
until then when inputs come as fast as they are taken, and the stacked LSTM's is one input's time.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
import mlx.core as mx
from benchmarking.baselines import INPUT_SIZE
from benchmarking.report import Table

from mlx_tlstm import VARIANTS, SequenceModel, StreamingSession, make_layer
from mlx_tlstm.checking.timing import Timing, machine, measure
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.devices import device_option
from mlx_tlstm.commands.paths import OutputFile

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

    def timing(name: str, depth: int, way: str) -> Timing:
        return timings[f"{name}, L={depth}, {way}"]

    rows = []
    for (name, depth), stream in streams.items():
        waited, flowing = (timing(name, depth, way) for way in ("wait", "flow"))
        each = waited.median / inputs
        low, high = (quartile / inputs for quartile in waited.quartiles)
        rows.append(
            (
                f"{name}, L={depth}",
                f"{each:.3f}",
                f"{low:.3f}–{high:.3f}",
                f"{waited.ratio(timing(name, depths[0], 'wait')):.2f}",
                f"{waited.ratio(timing(STACKED, depth, 'wait')):.2f}",
                f"{each * (1 + stream.delay):.3f}",
                f"{1e3 * batch_size * inputs / flowing.median:,.0f}",
            )
        )
    header = (
        "layer",
        "ms an input",
        "quartiles",
        f"to L={depths[0]}",
        "to stacked",
        "answer, ms",
        "inputs/s",
    )
    title = f"Streaming, M={hidden_size}, B={batch_size}, R=S={INPUT_SIZE}, {inputs} inputs a round"
    return Table(title, header, rows, {"streaming": timings})


@click.command(cls=Command, help=__doc__)
@click.option(
    "--variant",
    type=click.Choice([name for name in VARIANTS if name != STACKED]),
    default="2d-tlstm+cn",
    show_default=True,
)
@click.option("--hidden-size", default=100, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(1))
@click.option(
    "--depth",
    "depths",
    multiple=True,
    type=click.IntRange(1),
    default=(1, 2, 4, 8),
    show_default=True,
    help="L; repeatable.",
)
@click.option("--inputs", default=100, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1))
@click.option("--warmup", default=2, show_default=True, type=click.IntRange(0))
@device_option
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option("--json", "json_path", type=OutputFile())
def main(
    variant: str,
    hidden_size: int,
    batch_size: int,
    depths: tuple[int, ...],
    inputs: int,
    rounds: int,
    warmup: int,
    markdown: bool,
    json_path: Path | None,
) -> None:
    mx.random.seed(0)
    command = shlex.join(["python", "scripts/latency.py", *sys.argv[1:]])
    facts = dataclasses.asdict(machine()) | {"command": command}
    mark = "- " if markdown else ""
    click.echo("\n".join(f"{mark}{name}: {value}" for name, value in facts.items()))
    table = latency_table(variant, hidden_size, batch_size, depths, inputs, rounds, warmup)
    click.echo("\n" + table.text(markdown))
    if json_path is not None:
        timings = {name: timing.as_dict() for name, timing in table.timings["streaming"].items()}
        json_path.write_text(json.dumps({"facts": facts, "timings": timings}, indent=2))


if __name__ == "__main__":
    main()

"""What one call on a long sequence costs, whole and in chunks with the state carried.

A call is a layer's over one sequence, not compiled. Each figure is of a process of its own:
processor seconds of graph and evaluation, and how far they raised the largest memory that the
process had. A gradient is of all parameters, in training mode; the calls are in evaluation mode.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
import mlx.core as mx
from benchmarking.tables import Table, markdown_option, say_facts, tables_told
from mlx import nn

from mlx_tlstm import VARIANTS, make_layer
from mlx_tlstm.commands.base import Command

WAYS = ("call", "gradient", "chunks")
INPUT_SIZE = 4


def cost(way: str, variant: str, depth: int, hidden_size: int, steps: int, chunk: int) -> str:
    """Processor seconds and MiB of one way to run ``steps`` steps, as a cell of the table."""
    mx.random.seed(0)
    layer = make_layer(variant, INPUT_SIZE, hidden_size, depth)
    x = mx.random.normal((1, steps, INPUT_SIZE))
    mx.eval(layer.parameters(), x)
    before, started = _peak_bytes(), time.process_time()
    if way == "gradient":
        mx.eval(nn.value_and_grad(layer, lambda x: (layer(x)[0] ** 2).sum())(x))
    else:
        layer.eval()
        size, state = (chunk if way == "chunks" else steps), None
        for start in range(0, steps, size):
            y, state = layer(x[:, start : start + size], state)
            mx.eval(y, state)
    seconds = time.process_time() - started
    return f"{seconds:.1f} s, {(_peak_bytes() - before) / 2**20:,.0f} MiB"


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@click.command(cls=Command, help=__doc__)
@click.option(
    "--steps",
    multiple=True,
    type=click.IntRange(1),
    default=(1000, 5000, 20_000),
    show_default=True,
    help="T; repeatable.",
)
@click.option(
    "--chunk", type=click.IntRange(1), default=500, show_default=True, help="Time steps in a chunk."
)
@click.option(
    "--way",
    "ways",
    multiple=True,
    type=click.Choice(WAYS),
    default=WAYS,
    help="Measure these only; repeatable.",
)
@click.option(
    "--variant",
    type=click.Choice(list(VARIANTS)),
    default="2d-tlstm+cn",
    show_default=True,
    help="The network.",
)
@click.option("--depth", type=click.IntRange(1), default=3, show_default=True, help="L.")
@click.option("--hidden-size", type=click.IntRange(1), default=16, show_default=True, help="M.")
@markdown_option
def main(
    steps: tuple[int, ...],
    chunk: int,
    ways: tuple[str, ...],
    variant: str,
    depth: int,
    hidden_size: int,
    markdown: bool,
) -> None:
    say_facts("long_sequences", markdown)
    depth = VARIANTS[variant].settings.get("depth", depth)
    names = {"call": "one call", "gradient": "gradient", "chunks": f"chunks of {chunk}"}
    title, rows = f"{variant}, L={depth}, M={hidden_size}, B=1, R={INPUT_SIZE}", []
    # Not forked: MLX has run in this process, as the facts needed it.
    spawning = multiprocessing.get_context("spawn")
    with (
        tables_told(markdown) as tables,
        spawning.Pool(1, maxtasksperchild=1) as processes,
    ):
        tables.append(Table(title, rows))
        for T in steps:
            sizes = (variant, depth, hidden_size, T, chunk)
            cells = {names[way]: processes.apply(cost, (way, *sizes)) for way in ways}
            rows.append({"T": f"{T:,}", **cells})


if __name__ == "__main__":
    main()

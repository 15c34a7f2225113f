"""Time inputs that come one by one, through a tLSTM and a stacked LSTM of the same depth.

An input takes a time step of the tLSTM whatever its depth, and all layers of the stacked LSTM, one
after the other. The tLSTM's answer comes L - 1 inputs later; the column "answer" is what it takes
until then when inputs come as fast as they are taken, and the stacked LSTM's is one input's time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
import mlx.core as mx
from benchmarking.streams import latency_table
from benchmarking.tables import (
    json_option,
    markdown_option,
    measured_by,
    say_facts,
    say_tables,
    write_timings,
)

from mlx_tlstm import VARIANTS
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.devices import device_option


@click.command(cls=Command, help=__doc__)
@click.option(
    "--variant",
    type=click.Choice([name for name, variant in VARIANTS.items() if variant.axes]),
    default="2d-tlstm+cn",
    show_default=True,
    help="The network.",
)
@click.option("--hidden-size", type=click.IntRange(1), default=100, show_default=True, help="M.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Streams at once."
)
@click.option(
    "--depth",
    "depths",
    multiple=True,
    type=click.IntRange(1),
    default=(1, 2, 4, 8),
    show_default=True,
    help="L; repeatable.",
)
@measured_by(warmup=2, rounds=10, inputs=100)
@device_option
@markdown_option
@json_option
def main(markdown: bool, json_path: Path | None, **sizes: Any) -> None:
    mx.random.seed(0)
    facts = say_facts("latency", markdown)
    tables = [latency_table(**sizes)]
    say_tables(tables, markdown)
    write_timings(json_path, facts, tables)


if __name__ == "__main__":
    main()

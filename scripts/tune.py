"""Find the fastest tile of each convolution kernel on this device, and store it for the layers.

For each size the forward pass, the gradient of its inputs and the gradient of its weight are timed
with every tile and as MLX's own matrix product, with the kernels that it needs around it. Layers
run what wins. All numbers are compared with plain operations' before any is timed.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
import mlx.core as mx
from benchmarking.sizes import LAYER_SIZES, Size, SizeType, tf32_text
from benchmarking.tables import Table, json_option, markdown_option, measured_by, say_tables
from benchmarking.tile_search import tune

from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.numbers import Seconds
from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.config import DTYPES
from mlx_tlstm.kernels import dispatch, tuning


@click.command(cls=Command, keeps_results=True, help=__doc__)
@click.option(
    "--size",
    "sizes",
    type=SizeType(),
    multiple=True,
    default=LAYER_SIZES,
    show_default="the benchmark's layers",
    help="Like 4x4,M=100,B=15,T=42; repeatable. T does not matter.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(DTYPES),
    multiple=True,
    default=("float32",),
    show_default=True,
    help="Tune for it; repeatable.",
)
@click.option("--no-memory-convolution", is_flag=True, help="Tune for layers without it.")
@measured_by(launches=10, rounds=10)
@click.option(
    "--seconds", type=Seconds(), help="Start no further round of a product after so long."
)
@click.option("--dry-run", is_flag=True, help="Measure and store nothing.")
@click.option(
    "--output",
    type=UserPath(dir_okay=False),
    help="The file to store tiles in, in place of the user's.",
)
@markdown_option
@json_option
def main(
    sizes: tuple[Size, ...],
    dtypes: tuple[str, ...],
    no_memory_convolution: bool,
    rounds: int,
    launches: int,
    seconds: float | None,
    dry_run: bool,
    output: Path | None,
    markdown: bool,
    json_path: Path | None,
) -> None:
    backend, reason = dispatch.kernel_backend()
    if backend is None:
        raise click.ClickException(f"no kernels run here, so there is nothing to tune: {reason}")
    facts = {"device": tuning.device(), "backend": backend, "TF32": tf32_text()}
    click.echo(f"device: {tuning.device()}, {backend}\nTF32: {tf32_text()}")
    if not dry_run:  # an error comes before the work
        (output or tuning.path()).parent.mkdir(parents=True, exist_ok=True)
    options = {"rounds": rounds, "warmup": 1, "seconds": seconds}
    record = []
    for dtype in dtypes:
        for size in sizes:
            variant = {"memory_convolution": not no_memory_convolution}
            measurements = tune(size.problem(getattr(mx, dtype), **variant), launches, options)
            title = f"{size}, {dtype}: milliseconds of a launch"
            say_tables([Table(title, [one.row() for one in measurements])], markdown)
            # Size by size, so that an interrupted run keeps what it measured.
            if not dry_run:
                stored = {one.product: one.winner for one in measurements}
                click.echo(f"stored in {tuning.store(stored, output)}")
            record += [measurement.as_dict() for measurement in measurements]
            if json_path is not None:
                json_path.write_text(json.dumps({"facts": facts, "products": record}, indent=2))


if __name__ == "__main__":
    main()

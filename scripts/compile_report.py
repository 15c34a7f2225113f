"""Compile the kernels for an NVIDIA GPU and print what they need; no GPU is needed.

Every kernel that a layer of the given sizes launches is translated as for mx.fast.cuda_kernel and
compiled by NVRTC (pip install nvidia-cuda-nvrtc nvidia-cuda-runtime). A spill means that registers
did not suffice. Metal's compiler allots registers in its own way: these numbers are CUDA's.
"""

from __future__ import annotations

import itertools
import math
import sys

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
import mlx.core as mx
from benchmarking.launches import Launch, networks, of_a_pass
from benchmarking.nvrtc import Compiler, cuda_source, resources
from benchmarking.sizes import LAYER_SIZES, Size, SizeType
from benchmarking.tables import Table, markdown_option

from mlx_tlstm.commands.base import Command
from mlx_tlstm.config import DTYPES
from mlx_tlstm.kernels import tuning


def report(sizes: tuple[Size, ...], dtypes: tuple[str, ...], compiler: Compiler) -> Table:
    """A row for each kernel and type: its variants at their worst."""
    needs: dict[Launch, tuple[int, int, int]] = {}
    rows: dict[tuple[str, ...], set[Launch]] = {}
    of_sizes = ((size, layer) for size in sizes for layer in networks(size))
    for (size, layer), dtype in itertools.product(of_sizes, dtypes):
        layer.set_dtype(getattr(mx, dtype))
        # 9 steps have every variant of a longer sequence.
        own = of_a_pass(layer, size.batch_size, 9)
        with tuning.forced(None):
            own += of_a_pass(layer, size.batch_size, 9)
        for launch in own:
            if launch not in needs:
                log = compiler.compile(cuda_source(launch), launch.name)
                needs[launch] = resources(log)
            rows.setdefault((launch.name, dtype), set()).add(launch)
    cells = []
    for row, launches in sorted(rows.items()):
        numbers = [(len(launches), math.prod(one.threadgroup), *needs[one]) for one in launches]
        largest = (str(max(column)) for column in zip(*numbers, strict=True))
        named = zip(("kernel", "dtype"), row, strict=True)
        columns = ("variants", "threads", "registers", "shared", "spilt")
        cells.append(dict(named) | dict(zip(columns, largest, strict=True)))
    return Table("The most that a variant of a kernel needs", cells)


@click.command(cls=Command, help=__doc__)
@click.option(
    "--size",
    "sizes",
    type=SizeType(),
    multiple=True,
    default=LAYER_SIZES,
    help="Like 4x4,M=100,B=15,T=42; repeatable.",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    default=DTYPES,
    type=click.Choice(DTYPES),
    help="Compile for these only; repeatable.",
)
@click.option("--arch", default="sm_90", show_default=True, help="The GPU to compile for.")
@markdown_option
def main(
    sizes: tuple[Size, ...],
    dtypes: tuple[str, ...],
    arch: str,
    markdown: bool,
) -> None:
    table = report(sizes, dtypes, Compiler(arch))
    click.echo(table.text(markdown))
    if any(int(row["spilt"]) for row in table.rows):
        click.echo("\nSome kernels spill registers.")
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Time forward and backward passes of the layers against bare matrix products and PyTorch.

Unless a table says otherwise, figures are milliseconds of a forward and backward pass per timestep
of one example, and a column "to X" is the layer's time divided by X's. PyTorch runs as it is and,
where torch.compile can, with a compiled time step. A pass takes all gradients, of parameters and
inputs, of the sum of the outputs times a fixed random array, through mx.compile as training does.
--layers, --kernels and --pieces take --size in place of their own sizes. Ctrl-C ends it with what
was measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
import mlx.core as mx
from benchmarking import pytorch_process
from benchmarking.kernel_times import kernels_table
from benchmarking.layers import layer_tables
from benchmarking.loops import loops_table
from benchmarking.piece_times import pieces_table
from benchmarking.sizes import DEPTH_SIZES, LAYER_SIZES, Size, SizeType, tf32_text
from benchmarking.tables import (
    grow,
    json_option,
    markdown_option,
    measured_by,
    say_facts,
    tables_told,
)

from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.devices import device_option
from mlx_tlstm.commands.numbers import Seconds
from mlx_tlstm.config import DTYPES
from mlx_tlstm.training.loop import larger_cpu_cache

DEFAULT_SIZES = (
    Size((4, 4), 100, 15, 42),
    Size((7, 7), 100, 15, 42),
    Size((3, 3), 100, 50, 100),
    Size((10,), 100, 15, 42),
)
_SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
_BUSY = (
    "PyTorch's OpenMP threads wait by spinning, and beside other work that has made them 150 "
    "times slower, so that the ratios need a quiet machine."
)


def _compile_text() -> str:
    """Whether MLX's passes are compiled, and why not."""
    if os.environ.get("MLX_DISABLE_COMPILE"):
        return "off"
    # A Mac without developer tools has a g++ that only offers to install them.
    stub = sys.platform == "darwin" and subprocess.call(["xcode-select", "-p"], **_SILENT) != 0
    if mx.default_device() == mx.cpu and (stub or shutil.which("g++") is None):
        return "off (no g++)"
    return "on"


@click.command(cls=Command, help=__doc__)
@click.option(
    "--size", "sizes", type=SizeType(), multiple=True, help="Like 4x4,M=100,B=15,T=42; repeatable."
)
@click.option("--scan", is_flag=True, help="Time scan, mlx.nn.LSTM and a loop, T=98 to 1568.")
@click.option("--depth", is_flag=True, help="Time depths 1 to 10, beside the stacked LSTM.")
@click.option("--layers", is_flag=True, help="Time large layers, beside the stacked LSTM.")
@click.option("--kernels", is_flag=True, help="Time each kernel and say what it moves.")
@click.option("--pieces", is_flag=True, help="Time each piece of a step as plain operations.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float32",
    show_default=True,
    help="Type for --layers and --kernels.",
)
@measured_by(warmup=2, rounds=10)
@click.option("--seconds", type=Seconds(), help="Start no further round of a size after so long.")
@device_option
@click.option("--skip-torch", is_flag=True, help="Leave PyTorch out, and with it the check.")
@markdown_option
@json_option
def main(
    sizes: tuple[Size, ...],
    scan: bool,
    depth: bool,
    layers: bool,
    kernels: bool,
    pieces: bool,
    dtype: str,
    skip_torch: bool,
    markdown: bool,
    json_path: Path | None,
    **options: float | None,
) -> None:
    if dtype != "float32" and not (layers or kernels):
        raise click.UsageError("--dtype goes with --layers and --kernels")
    tables_of_their_own = layers or kernels or pieces
    plain = not tables_of_their_own and bool(sizes or not (scan or depth))
    large_sizes, type_ = sizes or LAYER_SIZES, getattr(mx, dtype)
    mx.random.seed(0)
    compared = plain or layers or depth
    torch, torch_text = pytorch_process.started(compared and not skip_torch)
    facts = {"TF32": tf32_text(), "mx.compile": _compile_text(), "pytorch": torch_text}
    facts = say_facts("benchmark", markdown, _BUSY if torch else "", **facts)
    with (
        tables_told(markdown, json_path, facts) as tables,
        larger_cpu_cache(),  # as in training
    ):
        try:
            if plain:
                grow(tables, layer_tables(sizes or DEFAULT_SIZES, type_, torch, options, False))
            if layers:
                grow(tables, layer_tables(large_sizes, type_, torch, options))
            if depth:
                grow(tables, layer_tables(DEPTH_SIZES, mx.float32, torch, options))
        finally:
            if torch is not None:
                torch.close()
        if scan:
            grow(tables, loops_table(options))
        if kernels:
            grow(tables, kernels_table(large_sizes, type_, options))
        if pieces:
            grow(tables, pieces_table(sizes or DEFAULT_SIZES, options))


if __name__ == "__main__":
    main()

"""Time forward and backward passes of the layers against bare matrix products and PyTorch.

Unless a table says otherwise, figures are milliseconds of a forward and backward pass per timestep
of one example. A pass takes all gradients, of parameters and inputs, of the sum of the outputs
times a fixed random array, through mx.compile as training does. --layers and --kernels take --size
in place of their own sizes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
import mlx.core as mx
from benchmarking.baselines import Size, TorchProcess
from benchmarking.layer_tables import kernels_table, layer_tables
from benchmarking.options import BUSY_LOAD, DTYPES, LAYER_SIZES, SizeType, tf32_text
from benchmarking.tables import depth_table, linear_table, sizes_table

from mlx_tlstm import blas
from mlx_tlstm.checking.timing import machine
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.devices import device_option
from mlx_tlstm.commands.paths import OutputFile
from mlx_tlstm.training.loop import larger_cpu_cache

DEFAULT_SIZES = (
    Size((4, 4), 100, 15, 42),
    Size((7, 7), 100, 15, 42),
    Size((3, 3), 100, 50, 100),
    Size((10,), 100, 15, 42),
)


def _compile_text(no_compile: bool) -> str:
    """Whether MLX's passes are compiled, and why not."""
    if no_compile or os.environ.get("MLX_DISABLE_COMPILE"):
        return "off"
    if mx.default_device() == mx.cpu and shutil.which("g++") is None:
        return "off (no g++)"
    return "on"


@click.command(cls=Command, help=__doc__)
@click.option(
    "--size", "sizes", type=SizeType(), multiple=True, help="Like 4x4,M=100,B=15,T=42; repeatable."
)
@click.option("--linear", is_flag=True, help="Time T=392 and T=784, beside mlx.nn.LSTM.")
@click.option("--depth", is_flag=True, help="Time depths 1 to 10, beside the stacked LSTM.")
@click.option("--layers", is_flag=True, help="Time large layers, beside the stacked LSTM.")
@click.option("--kernels", is_flag=True, help="Time each kernel and say what it moves.")
@click.option(
    "--dtype", type=click.Choice(list(DTYPES)), default="float32", help="Of --layers, --kernels."
)
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1))
@click.option("--warmup", default=2, show_default=True, type=click.IntRange(0))
@click.option("--seconds", type=float, help="Start no further round of a size after so long.")
@device_option
@click.option("--no-compile", is_flag=True, help="Run MLX's graphs as Python builds them.")
@click.option("--skip-torch", is_flag=True, help="Leave PyTorch out, and with it the check.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option("--json", "json_path", type=OutputFile())
def main(
    sizes: tuple[Size, ...],
    linear: bool,
    depth: bool,
    layers: bool,
    kernels: bool,
    dtype: str,
    rounds: int,
    warmup: int,
    seconds: float | None,
    no_compile: bool,
    skip_torch: bool,
    markdown: bool,
    json_path: Path | None,
) -> None:
    if no_compile:
        mx.disable_compile()
    if dtype != "float32" and not (layers or kernels):
        raise click.UsageError("--dtype goes with --layers and --kernels")
    large_sizes = sizes or LAYER_SIZES
    if layers or kernels:
        sizes = ()
    elif not sizes and not linear and not depth:
        sizes = DEFAULT_SIZES
    mx.random.seed(0)
    options = {"rounds": rounds, "warmup": warmup, "seconds": seconds}
    here = machine()
    command = shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]])
    torch = None
    compared = bool(sizes) or layers
    if not compared or skip_torch:
        torch_text = "not run, results not checked" if compared else "not run"
    elif importlib.util.find_spec("torch") is None:
        torch_text = "not installed, results not checked"
    else:
        torch = TorchProcess(gpu=mx.default_device() == mx.gpu)
        torch_text = str(torch)
    load = os.getloadavg()[0]
    facts = dataclasses.asdict(here)
    facts |= {
        "TF32": tf32_text(),
        "mx.compile": _compile_text(no_compile),
        "pytorch": torch_text,
        "load before": f"{load:.1f}",
        "command": command,
    }
    mark = "- " if markdown else ""
    click.echo("\n".join(f"{mark}{name}: {value}" for name, value in facts.items()))
    if here.slow_blas:
        click.echo(f"\nThese figures are of the slow BLAS. {blas.hint()}.")
    if load > BUSY_LOAD:
        click.echo(
            "\nOther work is running here. PyTorch's OpenMP threads wait by spinning, and beside "
            "other work that has made them 150 times slower: the ratios need a quiet machine."
        )
    tables = []
    with larger_cpu_cache():  # as in training
        try:
            if sizes:
                tables.append(sizes_table(list(sizes), torch, options))
            if layers:
                tables += layer_tables(large_sizes, DTYPES[dtype], torch, options)
        finally:
            if torch is not None:
                torch.close()
        if linear:
            tables.append(linear_table(options))
        if depth:
            tables.append(depth_table(options))
        if kernels:
            tables.append(kernels_table(large_sizes, DTYPES[dtype], options))
    for table in tables:
        click.echo("\n" + table.text(markdown))
    if json_path is not None:
        timings = {
            title: {name: timing.as_dict() for name, timing in group.items()}
            for table in tables
            for title, group in table.timings.items()
        }
        json_path.write_text(json.dumps({"facts": facts, "timings": timings}, indent=2))


if __name__ == "__main__":
    main()

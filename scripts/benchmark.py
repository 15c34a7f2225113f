"""Time forward and backward passes of the layers against bare matrix products and PyTorch.

Unless a table says otherwise, figures are milliseconds of a forward and backward pass per timestep
of one example. A pass takes all gradients, of parameters and inputs, of the sum of the outputs
times a fixed random array.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

import mlx_tlstm  # before MLX, so that it finds the fast BLAS

# isort: split
import mlx.core as mx
import numpy as np
from baselines import INPUT_SIZE, KERNEL_SIZE, Size, TorchProcess, bare_products
from mlx import nn
from mlx.utils import tree_flatten, tree_map_with_path
from report import Table

from mlx_tlstm import blas
from mlx_tlstm.cache import larger_cpu_cache
from mlx_tlstm.timing import machine, measure, per_timestep_example

DEPTHS = (1, 2, 4, 10)
LENGTHS = (392, 784)  # half an MNIST image and a whole one, pixel by pixel
TOLERANCE = 1e-4
BUSY_LOAD = 0.5  # mean number of running processes over the last minute


DEFAULT_SIZES = (
    Size((4, 4), 100, 15, 42),
    Size((7, 7), 100, 15, 42),
    Size((3, 3), 100, 50, 100),
    Size((10,), 100, 15, 42),
)


class SizeType(click.ParamType):
    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> Size:
        try:
            return value if isinstance(value, Size) else Size.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def random_sequence(batch_size: int, length: int, width: int, seed: int) -> mx.array:
    """Standard normal ``[B, T, width]``."""
    return mx.random.normal((batch_size, length, width), key=mx.random.key(seed))


class Pass:
    """A forward and backward pass of an MLX layer over random inputs ``[B, T, R]``."""

    def __init__(self, layer: nn.Module, batch_size: int, length: int) -> None:
        self.layer = layer
        self.x = random_sequence(batch_size, length, INPUT_SIZE, seed=1)
        cell = getattr(layer, "cell", layer)
        self.cotangent = random_sequence(batch_size, length, cell.hidden_size, seed=2)
        self._gradients = mx.value_and_grad(self._loss, argnums=(0, 1))
        mx.eval(layer.parameters(), self.x, self.cotangent)

    def _loss(self, parameters: Any, x: mx.array) -> tuple[mx.array, mx.array]:
        self.layer.update(parameters)
        outputs = self.layer(x)[0]
        return (outputs * self.cotangent).sum(), outputs

    def run(self) -> tuple[mx.array, Any, mx.array]:
        """Outputs, gradients of the parameters and of the inputs, evaluated."""
        parameters = self.layer.parameters()
        (_, outputs), (d_parameters, d_x) = self._gradients(parameters, self.x)
        # The loss left its tracers in the layer.
        self.layer.update(parameters)
        mx.eval(outputs, d_parameters, d_x)
        return outputs, d_parameters, d_x


def check_against_torch(mlx_pass: Pass, torch: TorchProcess, settings: dict[str, Any]) -> None:
    """Load the pass into the worker and compare outputs and all gradients.

    Raises:
        click.ClickException: They differ; no speed is reported on wrong numbers.
    """

    def arrays(tree: Any) -> dict[str, np.ndarray]:
        return {name: np.array(array) for name, array in tree_flatten(tree)}

    parameters = arrays(mlx_pass.layer.parameters())
    x, cotangent = np.array(mlx_pass.x), np.array(mlx_pass.cotangent)
    device = torch.description["device"]
    theirs_y, theirs = torch.ask("load", settings, parameters, x, cotangent, device)
    outputs, d_parameters, d_x = mlx_pass.run()
    ours = {"outputs": np.array(outputs), "x": np.array(d_x), **arrays(d_parameters)}
    theirs["outputs"] = theirs_y
    for name in sorted(ours.keys() | theirs.keys()):
        error = np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name])
        if not error <= TOLERANCE:
            raise click.ClickException(
                f"MLX and PyTorch differ by {error:.1e} in {name!r}, more than {TOLERANCE:.0e}: "
                "no speed on wrong numbers (an M5 or later needs MLX_ENABLE_TF32=0)"
            )


def randomized(layer: nn.Module) -> nn.Module:
    """Move biases and gains off the zeros and ones that would hide mistakes in the check."""

    def moved(path: str, array: mx.array) -> mx.array:
        return array if path.endswith("weight") else array + 0.1 * mx.random.normal(array.shape)

    layer.update(tree_map_with_path(moved, layer.parameters()))
    return layer


def sizes_table(sizes: list[Size], torch: TorchProcess | None, options: dict[str, Any]) -> Table:
    """3D and other tLSTMs with channel normalisation, the bare products and PyTorch."""
    rows, timings = [], {}
    for size in sizes:
        settings = {
            "input_size": INPUT_SIZE,
            "hidden_size": size.hidden_size,
            "tensor_size": size.tensor_size,
            "kernel_size": KERNEL_SIZE,
            "memory_convolution": True,
            "norm": "channel",
        }
        mlx_pass = Pass(randomized(mlx_tlstm.TLSTM(**settings)), size.batch_size, size.length)
        candidates = {"mlx-tlstm": mlx_pass.run, "products": bare_products(size)}
        if torch is not None:
            check_against_torch(mlx_pass, torch, settings)
            candidates["pytorch"] = lambda: torch.ask("run")
        timing = measure(candidates, **options)
        ours, products, theirs = (timing.get(n) for n in ("mlx-tlstm", "products", "pytorch"))
        low, high = (size.unit(quartile) for quartile in ours.quartiles)
        rows.append(
            (
                str(size),
                f"{size.unit(ours.median):.4f}",
                f"{size.unit(ours.minimum):.4f}",
                f"{low:.4f} – {high:.4f}",
                f"{size.unit(products.median):.4f}",
                f"{ours.ratio(products):.2f}",
                f"{size.unit(theirs.median):.4f}" if theirs else "not run",
                f"{ours.ratio(theirs):.2f}" if theirs else "not run",
                f"{ours.peak_bytes / 2**20:.0f}",
                str(len(ours.milliseconds)),
            )
        )
        timings[str(size)] = timing
    title = f"tLSTM, K={KERNEL_SIZE}, memory convolution, channel normalisation, R={INPUT_SIZE}"
    header = ("size", "ms", "min", "quartiles", "products", "ratio", "PyTorch", "ratio")
    return Table(title, (*header, "peak MiB", "rounds"), rows, timings)


def linear_table(options: dict[str, Any]) -> Table:
    """Whether the time is linear in T: our layer and ``mlx.nn.LSTM``."""
    hidden_size, batch_size = 100, 50
    layers = {
        "mlx-tlstm, P=3": lambda: mlx_tlstm.TLSTM(INPUT_SIZE, hidden_size, 3, norm="channel"),
        "mlx.nn.LSTM": lambda: nn.LSTM(INPUT_SIZE, hidden_size),
    }
    candidates = {
        f"{name}, T={length}": Pass(build(), batch_size, length).run
        for name, build in layers.items()
        for length in LENGTHS
    }
    timings = measure(candidates, **options)
    rows = []
    for name in layers:
        short, long = (timings[f"{name}, T={length}"] for length in LENGTHS)
        peaks = f"{short.peak_bytes / 2**20:.0f} / {long.peak_bytes / 2**20:.0f}"
        times = (f"{short.median:.0f}", f"{long.median:.0f}")
        rows.append((name, *times, f"{long.ratio(short):.2f}", peaks))
    title = f"Twice as many timesteps, M={hidden_size}, B={batch_size}, milliseconds of a pass"
    header = ("layer", *(f"T={length}" for length in LENGTHS), "ratio", "peak MiB")
    return Table(title, header, rows, {"linear": timings})


def depth_table(options: dict[str, Any]) -> Table:
    """Whether the time grows with the depth: 2D tLSTM and stacked LSTM."""
    hidden_size, batch_size, length = 100, 15, 42
    layers = {
        "2D tLSTM": lambda depth: mlx_tlstm.TLSTM(INPUT_SIZE, hidden_size, depth),
        "stacked LSTM": lambda depth: mlx_tlstm.StackedLSTM(INPUT_SIZE, hidden_size, depth),
    }
    candidates = {
        f"{name}, L={depth}": Pass(build(depth), batch_size, length).run
        for name, build in layers.items()
        for depth in DEPTHS
    }
    timings = measure(candidates, **options)
    rows = []
    for name in layers:
        by_depth = [timings[f"{name}, L={depth}"] for depth in DEPTHS]
        cells = [
            f"{per_timestep_example(t.median, length, batch_size):.4f} ({t.ratio(by_depth[0]):.2f})"
            for t in by_depth
        ]
        rows.append((name, *cells))
    title = f"Depth, M={hidden_size}, B={batch_size}, T={length}: ms and, in brackets, times L=1"
    return Table(title, ("layer", *(f"L={depth}" for depth in DEPTHS)), rows, {"depth": timings})


@click.command(help=__doc__)
@click.option(
    "--size", "sizes", type=SizeType(), multiple=True, help="Like 4x4,M=100,B=15,T=42; repeatable."
)
@click.option("--linear", is_flag=True, help="Time T=392 and T=784, beside mlx.nn.LSTM.")
@click.option("--depth", is_flag=True, help="Time depths 1 to 10, beside the stacked LSTM.")
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1))
@click.option("--warmup", default=2, show_default=True, type=click.IntRange(0))
@click.option("--seconds", type=float, help="Start no further round of a size after so long.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), help="Default: MLX's.")
@click.option("--skip-torch", is_flag=True, help="Leave PyTorch out, and with it the check.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, writable=True))
def main(
    sizes: tuple[Size, ...],
    linear: bool,
    depth: bool,
    rounds: int,
    warmup: int,
    seconds: float | None,
    device: str | None,
    skip_torch: bool,
    markdown: bool,
    json_path: str | None,
) -> None:
    if device is not None:
        mx.set_default_device(getattr(mx, device))
    if not sizes and not linear and not depth:
        sizes = DEFAULT_SIZES
    mx.random.seed(0)
    options = {"rounds": rounds, "warmup": warmup, "seconds": seconds}
    here = machine()
    command = shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]])
    torch = None
    if not sizes or skip_torch:
        torch_text = "not run, results not checked" if sizes else "not run"
    elif importlib.util.find_spec("torch") is None:
        torch_text = "not installed, results not checked"
    else:
        torch = TorchProcess(gpu=mx.default_device() == mx.gpu)
        torch_text = str(torch)
    load = os.getloadavg()[0]
    facts = dataclasses.asdict(here)
    facts |= {"pytorch": torch_text, "load before": f"{load:.1f}", "command": command}
    mark = "- " if markdown else ""
    click.echo("\n".join(f"{mark}{name}: {value}" for name, value in facts.items()))
    if here.slow_blas:
        click.echo(f"\nThese figures are of the slow BLAS. {blas.HINT}.")
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
        finally:
            if torch is not None:
                torch.close()
        if linear:
            tables.append(linear_table(options))
        if depth:
            tables.append(depth_table(options))
    for table in tables:
        click.echo("\n" + table.text(markdown))
    if json_path is not None:
        timings = {
            title: {name: timing.as_dict() for name, timing in group.items()}
            for table in tables
            for title, group in table.timings.items()
        }
        Path(json_path).write_text(json.dumps({"facts": facts, "timings": timings}, indent=2))


if __name__ == "__main__":
    main()

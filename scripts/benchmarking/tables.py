"""The benchmark's tables of layers at the README's sizes, over T and over the depth."""

from __future__ import annotations

from typing import Any

from mlx import nn

import mlx_tlstm
from benchmarking.baselines import INPUT_SIZE, KERNEL_SIZE, Size, TorchProcess
from benchmarking.passes import check_against_torch, randomized
from benchmarking.products import bare_products, layer_products, linear_products
from benchmarking.report import Table
from mlx_tlstm.checking.passes import Pass
from mlx_tlstm.checking.timing import measure, per_timestep_example

DEPTHS = (1, 2, 4, 10)
LENGTHS = (392, 784)  # half an MNIST image and a whole one, pixel by pixel


def settings_of(size: Size) -> dict[str, Any]:
    """Arguments of a tLSTM with memory convolution and channel normalisation."""
    return {
        "input_size": INPUT_SIZE,
        "hidden_size": size.hidden_size,
        "tensor_size": size.tensor_size,
        "kernel_size": KERNEL_SIZE,
        "memory_convolution": True,
        "norm": "channel",
    }


def sizes_table(sizes: list[Size], torch: TorchProcess | None, options: dict[str, Any]) -> Table:
    """3D and other tLSTMs with channel normalisation, the bare products and PyTorch."""
    rows, timings = [], {}
    for size in sizes:
        settings = settings_of(size)
        mlx_pass = Pass(randomized(mlx_tlstm.TLSTM(**settings)), size.batch_size, size.length)
        products = [
            *layer_products(mlx_pass.layer, size.batch_size, size.length),
            *linear_products(size.length * size.batch_size, INPUT_SIZE, size.hidden_size),
        ]
        candidates = {"mlx-tlstm": mlx_pass.run, "products": bare_products(products)}
        if torch is not None:
            check_against_torch(mlx_pass, torch, settings)
            candidates["pytorch"] = lambda: torch.ask("run", "pytorch")
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
    """Whether the time is linear in T: our layer and ``mlx.nn.LSTM``.

    The latter is not compiled: its gradient's T arrays, each of all time steps, then took more than
    24 GB at once.
    """
    hidden_size, batch_size = 100, 50
    layers = {
        "mlx-tlstm, P=3": lambda: mlx_tlstm.TLSTM(INPUT_SIZE, hidden_size, 3, norm="channel"),
        "mlx.nn.LSTM": lambda: nn.LSTM(INPUT_SIZE, hidden_size),
    }
    candidates = {
        f"{name}, T={length}": Pass(
            build(), batch_size, length, INPUT_SIZE, compiled=name != "mlx.nn.LSTM"
        ).run
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

"""PyTorch in a process of its own, and its results beside MLX's before anything is timed."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map_with_path

from benchmarking.sizes import unit_roundoff
from mlx_tlstm.checking.passes import Pass
from mlx_tlstm.checks import dtype_name
from mlx_tlstm.kernels.trial import relative_error

TOLERANCE = 1e-4  # of float32 sums in another order, and what the time steps make of it
_ROUNDINGS = 16  # the same for products of rounded factors
# Results are compared over few steps: over many, rounding errors grow with the gradient.
_CHECKED_STEPS = 8


class TorchProcess:
    """``pytorch_tlstm.py`` in its own process, without the BLAS that MLX is given."""

    def __init__(self, gpu: bool) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarking.pytorch_tlstm"],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.description = self.ask("describe", gpu)

    def ask(self, *request: Any) -> Any:
        """Send a request and wait for its reply."""
        pickle.dump(request, self._process.stdin)
        self._process.stdin.flush()
        try:
            return pickle.load(self._process.stdout)
        except EOFError:
            raise click.ClickException("the PyTorch process ended; see its error above") from None

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()

    def __str__(self) -> str:
        return "{version} on {device}, {threads} threads".format(**self.description)


def started(wanted: bool) -> tuple[TorchProcess | None, str]:
    """PyTorch's process, where it is wanted and installed, and words for what runs."""
    if not wanted:
        return None, "not run, results not checked"
    if importlib.util.find_spec("torch") is None:
        return None, "not installed, results not checked"
    torch = TorchProcess(gpu=mx.default_device() == mx.gpu)
    return torch, str(torch)


def check(
    layer: nn.Module, shape: tuple[int, int], torch: TorchProcess, settings: dict, kind: str
) -> None:
    """Compare outputs and all gradients of a layer over ``shape``, (B, T), few steps at most.

    Of a stacked LSTM, whose weights lie otherwise in PyTorch, outputs and the inputs' gradient.

    Raises:
        click.ClickException: They differ; no speed is reported on wrong numbers.
    """
    batch_size, length = shape
    mlx_pass = Pass(layer, batch_size, min(length, _CHECKED_STEPS))
    load(mlx_pass, torch, settings, kind, "checked")
    theirs_y, theirs = torch.ask("check", "checked")
    outputs, d_parameters, d_x = mlx_pass.run()
    ours = {"outputs": _numpy(outputs), "x": _numpy(d_x)}
    theirs["outputs"] = theirs_y
    if kind == "stacked":
        theirs = {name: theirs[name] for name in ours}
    else:
        ours |= {name: _numpy(array) for name, array in tree_flatten(d_parameters)}
    tolerance = max(TOLERANCE, _ROUNDINGS * unit_roundoff(mlx_pass.dtype))
    for name in sorted(ours.keys() | theirs.keys()):
        error = relative_error(ours[name], theirs[name])
        if not error <= tolerance:
            raise click.ClickException(
                f"MLX and PyTorch differ by {error:.1e} in {name!r}, more than {tolerance:.0e}: "
                "no speed on wrong numbers (an M5 or later needs MLX_ENABLE_TF32=0)"
            )


def load(mlx_pass: Pass, torch: TorchProcess, settings: dict, kind: str, name: str) -> None:
    """Have the process make the same pass, as ``name``."""
    parameters = {n: _numpy(array) for n, array in tree_flatten(mlx_pass.layer.parameters())}
    arrays = (parameters, _numpy(mlx_pass.x), _numpy(mlx_pass.cotangent))
    device = torch.description["device"]
    torch.ask("load", name, kind, settings, *arrays, device, dtype_name(mlx_pass.dtype))


def _numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


def randomized(layer: nn.Module) -> nn.Module:
    """Move biases and gains off the zeros and ones that would hide mistakes in the check."""

    def moved(path: str, array: mx.array) -> mx.array:
        return array if path.endswith("weight") else array + 0.1 * mx.random.normal(array.shape)

    layer.update(tree_map_with_path(moved, layer.parameters()))
    return layer

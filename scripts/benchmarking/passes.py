"""Forward and backward passes of MLX layers, held against PyTorch's before they are timed."""

from __future__ import annotations

from typing import Any

import click
import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map_with_path

from benchmarking.baselines import TorchProcess
from benchmarking.options import unit_roundoff
from mlx_tlstm.checking.passes import Pass

TOLERANCE = 1e-4  # of float32 sums in another order, and what the time steps make of it
_ROUNDINGS = 16  # the same for products of rounded factors


def check_against_torch(
    mlx_pass: Pass,
    torch: TorchProcess,
    settings: dict[str, Any],
    kind: str = "tlstm",
    name: str = "pytorch",
) -> None:
    """Load the pass into the worker as ``name`` and compare outputs and all gradients.

    Of a stacked LSTM, whose weights lie otherwise in PyTorch, outputs and the inputs' gradient.

    Raises:
        click.ClickException: They differ; no speed is reported on wrong numbers.
    """
    load_into_torch(mlx_pass, torch, settings, kind, name)
    theirs_y, theirs = torch.ask("check", name)
    outputs, d_parameters, d_x = mlx_pass.run()
    ours = {"outputs": _numpy(outputs), "x": _numpy(d_x)}
    theirs["outputs"] = theirs_y
    if kind == "stacked":
        theirs = {name: theirs[name] for name in ours}
    else:
        ours |= {name: _numpy(array) for name, array in tree_flatten(d_parameters)}
    tolerance = max(TOLERANCE, _ROUNDINGS * unit_roundoff(mlx_pass.dtype))
    for name in sorted(ours.keys() | theirs.keys()):
        error = np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name])
        if not error <= tolerance:
            raise click.ClickException(
                f"MLX and PyTorch differ by {error:.1e} in {name!r}, more than {tolerance:.0e}: "
                "no speed on wrong numbers (an M5 or later needs MLX_ENABLE_TF32=0)"
            )


def load_into_torch(
    mlx_pass: Pass, torch: TorchProcess, settings: dict[str, Any], kind: str, name: str
) -> None:
    """Have the worker make the same pass, as ``name``."""
    parameters = {n: _numpy(array) for n, array in tree_flatten(mlx_pass.layer.parameters())}
    x, cotangent = _numpy(mlx_pass.x), _numpy(mlx_pass.cotangent)
    device, dtype = torch.description["device"], str(mlx_pass.dtype).rpartition(".")[-1]
    torch.ask("load", name, kind, settings, parameters, x, cotangent, device, dtype)


def _numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


def randomized(layer: nn.Module) -> nn.Module:
    """Move biases and gains off the zeros and ones that would hide mistakes in the check."""

    def moved(path: str, array: mx.array) -> mx.array:
        return array if path.endswith("weight") else array + 0.1 * mx.random.normal(array.shape)

    layer.update(tree_map_with_path(moved, layer.parameters()))
    return layer

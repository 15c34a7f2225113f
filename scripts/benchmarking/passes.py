"""Forward and backward passes of MLX layers, held against PyTorch's before they are timed."""

from __future__ import annotations

import io
import re
from collections import Counter
from typing import Any

import click
import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map_with_path

from benchmarking.baselines import INPUT_SIZE, TorchProcess
from benchmarking.options import unit_roundoff

TOLERANCE = 1e-4  # of float32 sums in another order, and what the time steps make of it
_ROUNDINGS = 16  # the same for products of rounded factors

#: Nodes of a graph that compute nothing: views of an array in another shape.
_VIEWS = {
    "AsStrided",
    "Broadcast",
    "CustomTransforms",
    "ExpandDims",
    "Flatten",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "StopGradient",
    "Transpose",
    "Unflatten",
}


def random_sequence(batch_size: int, length: int, width: int, seed: int) -> mx.array:
    """Standard normal ``[B, T, width]``."""
    return mx.random.normal((batch_size, length, width), key=mx.random.key(seed))


class Pass:
    """A forward and backward pass of an MLX layer over random inputs ``[B, T, R]``.

    As in training it goes through ``mx.compile``, unless ``compiled`` is False.
    """

    def __init__(
        self,
        layer: nn.Module,
        batch_size: int,
        length: int,
        input_size: int = INPUT_SIZE,
        compiled: bool = True,
    ) -> None:
        self.layer = layer
        self.x = random_sequence(batch_size, length, input_size, seed=1)
        cell = getattr(layer, "cell", layer)
        self.cotangent = random_sequence(batch_size, length, cell.hidden_size, seed=2)
        self.dtype = tree_flatten(layer.parameters())[0][1].dtype
        gradients = mx.value_and_grad(self._loss, argnums=(0, 1))
        self._gradients = mx.compile(gradients) if compiled else gradients
        mx.eval(layer.parameters(), self.x, self.cotangent)

    def _loss(self, parameters: Any, x: mx.array) -> tuple[mx.array, mx.array]:
        self.layer.update(parameters)
        outputs = self.layer(x)[0]
        return (outputs * self.cotangent).sum(), outputs

    def graph(self) -> tuple[mx.array, Any, mx.array]:
        """Outputs, gradients of the parameters and of the inputs, not evaluated."""
        parameters = self.layer.parameters()
        (_, outputs), (d_parameters, d_x) = self._gradients(parameters, self.x)
        # A trace leaves its own arrays in the layer.
        self.layer.update(parameters)
        return outputs, d_parameters, d_x

    def run(self) -> tuple[mx.array, Any, mx.array]:
        """The same, evaluated."""
        results = self.graph()
        mx.eval(results)
        return results


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


def operations_per_step(layer: nn.Module) -> float:
    """Operations of a time step of a forward and backward pass that are no views of an array.

    Counted in MLX's graph, over 16 steps, and so to a sixteenth: on a GPU each is a launch, unless
    it finds its work done (a copy of what is contiguous). The batch does not matter.
    """
    short, long = (
        _operations(Pass(layer, 1, length, layer.cell.input_size)) for length in (16, 32)
    )
    return (long - short) / 16


def _operations(one: Pass) -> int:
    graph = io.StringIO()
    arrays = [array for _, array in tree_flatten(one.graph())]
    mx.export_to_dot(graph, *arrays)
    nodes = Counter(re.findall(r'label ="([^"]*)", shape=rectangle', graph.getvalue()))
    return sum(count for name, count in nodes.items() if name not in _VIEWS)

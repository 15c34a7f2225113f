"""Forward and backward passes of layers, to be timed and counted."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm.recurrence.graphs import operations


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
        input_size: int | None = None,
        compiled: bool = True,
    ) -> None:
        self.layer = layer
        cell = getattr(layer, "cell", layer)
        self.x = random_sequence(batch_size, length, input_size or cell.input_size, seed=1)
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


def operations_per_step(layer: nn.Module) -> float:
    """Operations of a time step of a forward and backward pass that are no views of an array.

    Counted in MLX's graph, over 16 steps, and so to a sixteenth: on a GPU each is a launch, unless
    it finds its work done (a copy of what is contiguous). The batch does not matter.
    """
    short, long = (
        operations([a for _, a in tree_flatten(Pass(layer, 1, T, layer.cell.input_size).graph())])
        for T in (16, 32)
    )
    return (long - short) / 16

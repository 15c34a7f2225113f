"""The matrix products of a forward and backward pass and nothing else: the floor of its time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import mlx.core as mx

from mlx_tlstm.checks import require
from mlx_tlstm.layers import Recurrent, StackedLSTM
from mlx_tlstm.layers.layer import Layer
from mlx_tlstm.recurrence.graphs import Node
from mlx_tlstm.training.step_graph import gradient_nodes

#: Products that are queued before their results are let go.
_QUEUED = 8


class Product(NamedTuple):
    """``[m, k]`` by ``[k, n]``, taken ``times`` times.

    ``layout`` is BLAS's: ``"t"`` for the left or the right factor where it is a transposed view.
    """

    m: int
    k: int
    n: int
    times: int
    layout: str

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.k * self.n * self.times


def layer_products(layer: Layer, batch_size: int, length: int) -> list[Product]:
    """Those of the steps of a layer over ``[B, T, R]``, without the input projection's.

    A tLSTM or tRNN with N = B·<P> rows takes ``[N, <K>·M]`` by ``[<K>·M, O]`` in each of its
    T + L - 1 steps, and ``[N, O]`` by ``[O, <K>·M]`` backward; in the last L - 1, where these run
    on a corner of the tensor, N is that corner's. A stacked LSTM takes, in each of T steps, one
    such product for the pasts of all layers, and one a layer for what is below it. The weight
    gradient is taken of as many steps at once as the layer's own.

    Those of another cell are read from its step's graph, and taken in each of T steps; its inputs
    are projected in the step, and that is among them.

    Raises:
        ValueError: It is another cell, whose step MLX cannot write out.
    """
    if isinstance(layer, Recurrent):
        nodes = gradient_nodes(layer, batch_size, layer.input_size)
        expected = "one whose step MLX can write out"
        require(bool(nodes), "layer_products", "cell", expected, type(layer.cell).__name__)
        found = [node for node in nodes if node.get("name") in ("AddMM", "Matmul")]
        return [_of_node(node, length) for node in found]
    cell = layer.cell
    transition = cell.active_transition(batch_size)
    outputs, inputs = cell.weight.shape[0], math.prod(cell.weight.shape[1:])
    if isinstance(layer, StackedLSTM):
        M, L = cell.hidden_size, cell.depth
        passed = [(batch_size, M, length * L), (batch_size * L, M, length)]
        summed = [(transition, batch_size * L, length)]
    else:
        prepared = transition.prepare(cell.transition_parameters())
        steps = Counter({transition: length})
        steps.update(transition.corner(prepared, left)[0] for left in range(1, cell.delay + 1))
        summed = [(one, batch_size * one.backend.geometry.locations, n) for one, n in steps.items()]
        passed = [(rows, inputs, count) for _, rows, count in summed]
    products = []
    for m, k, times in passed:
        products.append(Product(m, k, outputs, times, "nt"))
        products.append(Product(m, outputs, k, times, "nn"))
    for one, rows, count in summed:
        piece = min(count, one.weight_gradient_steps(batch_size))
        whole, rest = divmod(count, piece)
        products.append(Product(outputs, piece * rows, inputs, whole, "tn"))
        if rest:
            products.append(Product(outputs, rest * rows, inputs, 1, "tn"))
    return products


def _of_node(node: Node, times: int) -> Product:
    """A product in a graph; MLX makes a transposed factor a view before."""
    (_, left, _), (_, right, _), *_ = node["inputs"]
    return Product(math.prod(left[:-1]), left[-1], right[-1], times, "nn")


def linear_products(
    rows: int, inputs: int, outputs: int, input_gradient: bool = True
) -> list[Product]:
    """Those of a linear layer over ``rows`` rows: forward, of its weight and of its inputs."""
    products = [
        Product(rows, inputs, outputs, 1, "nt"),
        Product(outputs, rows, inputs, 1, "tn"),
    ]
    return [*products, Product(rows, outputs, inputs, 1, "nn")] if input_gradient else products


def bare_products(products: Iterable[Product], dtype: mx.Dtype = mx.float32) -> Callable[[], None]:
    """Takes all products of random factors and waits for them."""
    factors = []
    for product in products:
        m, k, n, times, (left, right) = product
        a = mx.random.normal((k, m) if left == "t" else (m, k), dtype)
        b = mx.random.normal((n, k) if right == "t" else (k, n), dtype)
        mx.eval(a, b)
        factors.append((a.T if left == "t" else a, b.T if right == "t" else b, times))

    def run() -> None:
        for a, b, times in factors:
            for first in range(0, times, _QUEUED):
                mx.async_eval([a @ b for _ in range(min(_QUEUED, times - first))])
        mx.synchronize()

    return run

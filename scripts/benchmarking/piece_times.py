"""The benchmark's table of pieces: what a time step's time consists of as plain operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

import mlx_tlstm
from benchmarking.products import bare_products, layer_products
from benchmarking.pytorch_process import randomized
from benchmarking.sizes import Size
from benchmarking.tables import Table
from mlx_tlstm.checking.passes import Pass, operations_per_step
from mlx_tlstm.checking.timing import measure
from mlx_tlstm.recurrence.contract import Step
from mlx_tlstm.recurrence.graphs import operations

CALLS = 10  # of a piece, timed together

#: A piece's function and arguments, and how many time steps a call serves.
_Pieces = dict[str, tuple[Callable[..., Any], tuple[Any, ...], int]]


def pieces_table(sizes: Iterable[Size], options: dict[str, Any]) -> Iterator[list[Table]]:
    """Each piece of a step alone, compiled, beside the step of a whole forward and backward pass.

    The table so far, after each size.

    Times are those of the fastest round, and the share is of the step. The pieces' sum differs from
    it by what MLX schedules while other work runs, and by what stays in caches.
    """
    rows, timings = [], {}
    title = "Pieces of a time step, forward and backward, of the whole batch"
    for size in sizes:
        layer = randomized(mlx_tlstm.TLSTM(**size.settings()))
        steps = size.length + layer.delay
        pieces = _pieces(size, layer)
        candidates = {name: _calls(*piece[:2]) for name, piece in pieces.items()}
        candidates["step"] = Pass(layer, size.batch_size, size.length).run
        products = layer_products(layer, size.batch_size, size.length)
        candidates["of these, bare products"] = bare_products(products)
        timing = timings[f"pieces, {size}"] = measure(candidates, **options)
        taken = {name: timing[name].minimum / CALLS / piece[2] for name, piece in pieces.items()}
        counts = {
            name: f"{_count(function, arguments) / served:.1f}"
            for name, (function, arguments, served) in pieces.items()
        }
        taken["all pieces"] = sum(taken.values())
        for name in ("of these, bare products", "step"):
            taken[name] = timing[name].minimum / steps
        counts["step"] = f"{operations_per_step(layer):.1f}"
        rows += [
            {
                "size": str(size),
                "piece": name,
                "µs": f"{1e3 * milliseconds:.0f}",
                "of a step": f"{100 * milliseconds / taken['step']:.0f} %",
                "operations": counts.get(name, "–"),
            }
            for name, milliseconds in taken.items()
        ]
        yield [Table(title, rows, timings)]


def _pieces(size: Size, layer: Any) -> _Pieces:
    cell, B, M = layer.cell, size.batch_size, size.hidden_size
    backend = cell.transition.backend
    parameters = cell.transition_parameters()
    prepared = backend.prepare(parameters)
    state, gradient = (B, *size.tensor_size, M), (B, M)
    H, C, d_H = (mx.random.normal(state) for _ in range(3))
    x, d_output = (mx.random.normal(gradient) for _ in range(2))
    A = backend.convolution(H, x, prepared)
    H_after, C_after, _, residuals = backend.memory_update(A, C, prepared)
    step = Step(x, (H, C), (H_after, C_after), residuals)
    d_A, later = backend.memory_gradient(d_H, d_output, None, None, step, prepared)
    at_once = min(backend.weight_gradient_steps(B, M), size.length + layer.delay)
    many = [[mx.random.normal(a.shape) for _ in range(at_once)] for a in (H, x, d_A)]
    mx.eval(parameters, step, d_A, later, d_output, d_H, many)

    def memory_gradient(d_H: mx.array, d_output: mx.array, later: Any, residuals: Any) -> Any:
        taken = step._replace(residuals=residuals)
        return backend.memory_gradient(d_H, d_output, None, later, taken, prepared)

    return {
        "convolution": (lambda H, x: backend.convolution(H, x, prepared), (H, x), 1),
        "memory update": (lambda A, C: backend.memory_update(A, C, prepared), (A, C), 1),
        "memory gradient": (memory_gradient, (d_H, d_output, later, residuals), 1),
        "input gradient": (lambda d: backend.convolution_gradient(d, prepared), (d_A,), 1),
        "weight gradient": (backend.weight_gradient, tuple(many), at_once),
    }


def _calls(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[[], None]:
    compiled = mx.compile(function)
    return lambda: mx.eval([compiled(*arguments) for _ in range(CALLS)])


def _count(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    return operations([array for _, array in tree_flatten(mx.compile(function)(*arguments))])

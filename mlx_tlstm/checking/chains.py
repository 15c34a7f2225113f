"""Launches of single kernels on random arrays, and bare matrix products, for timing them.

In a layer every launch waits for the one before it, and so they do here: a launch reads a number
that the one before wrote. Without that a GPU would run them side by side, which flatters tiles that
leave most of it idle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import KernelBackend, convolution
from mlx_tlstm.kernels.memory_update import MemoryGradient
from mlx_tlstm.kernels.tiles import Tile
from mlx_tlstm.kernels.tuning import Product
from mlx_tlstm.ops import PlainBackend
from mlx_tlstm.ops.memory_update import memory_convolution_backward
from mlx_tlstm.recurrence.contract import Backend, MemoryUpdate, Prepared, Step
from mlx_tlstm.recurrence.trees import arrays_of, with_arrays

Arrays = tuple[mx.array, ...]


@dataclasses.dataclass(frozen=True)
class Problem:
    """The sizes that a time step's kernels are given.

    Args:
        geometry: Tensor and kernel size.
        hidden_size: M.
        batch_size: B.
        dtype: Type of weights, hidden state and activations.
        memory_convolution: See :class:`mlx_tlstm.TLSTM`.
        norm: ``None``, ``"channel"`` or ``"layer"``; see :class:`mlx_tlstm.TLSTM`.
    """

    geometry: Geometry
    hidden_size: int
    batch_size: int
    dtype: mx.Dtype = mx.float32
    memory_convolution: bool = True
    norm: str | None = "channel"

    @property
    def rows(self) -> int:
        """B·P, rows of the hidden state."""
        return self.batch_size * self.geometry.locations

    @property
    def channels(self) -> int:
        """O, output channels of the cross-layer convolution."""
        return 4 * self.hidden_size + (self.geometry.taps if self.memory_convolution else 0)

    @property
    def kernels(self) -> KernelBackend:
        """What launches them."""
        return KernelBackend(self.geometry, MemoryUpdate(self.memory_convolution, self.norm))

    @property
    def plain(self) -> PlainBackend:
        """The same as plain operations."""
        return PlainBackend(self.geometry, self.kernels.update)


@dataclasses.dataclass(frozen=True)
class Chain:
    """Launches that depend on one another.

    Args:
        start: The arrays that the first launch takes; they are evaluated here.
        launch: Takes the arrays of a launch, and returns its outputs.
        follow: Takes the arrays and outputs of a launch, and returns the arrays of the next.
        results: Makes of a launch's outputs what kernels and plain operations have in common.
    """

    start: Arrays
    launch: Callable[..., Arrays]
    follow: Callable[[Arrays, Arrays], Arrays]
    results: Callable[[Arrays], Arrays] = lambda outputs: outputs

    def __post_init__(self) -> None:
        mx.eval(self.start)

    def once(self) -> Arrays:
        """Results of the first launch, not evaluated."""
        return self.results(self.launch(*self.start))

    def run(self, count: int) -> None:
        """``count`` launches one after the other, evaluated."""
        arrays = self.start
        for i in range(count):
            outputs = self.launch(*arrays)
            if i + 1 < count:
                arrays = self.follow(arrays, outputs)
        mx.eval(outputs)


def _with_first(array: mx.array, result: mx.array) -> mx.array:
    """``array`` with the first element of ``result`` in the place of its own.

    One launch on one element, and no copy of an array that nothing else holds.
    """
    flat = array.reshape(-1)
    flat[:1] = result.reshape(-1)[:1].astype(array.dtype)
    return flat.reshape(array.shape)


def _normal(shape: Sequence[int], scale: float, dtype: mx.Dtype, seed: int) -> mx.array:
    return (scale * mx.random.normal(tuple(shape), key=mx.random.key(seed))).astype(dtype)


def _weight(problem: Problem) -> mx.array:
    geometry, M = problem.geometry, problem.hidden_size
    shape = (problem.channels, *geometry.kernel_size, M)
    return _normal(shape, (geometry.taps * M) ** -0.5, problem.dtype, seed=0)


def _state(problem: Problem, channels: int, dtype: mx.Dtype, seed: int) -> mx.array:
    shape = (problem.batch_size, *problem.geometry.tensor_size, channels)
    return _normal(shape, 1.0, dtype, seed)


def _projected(problem: Problem, seed: int) -> mx.array:
    return _normal((problem.batch_size, problem.hidden_size), 1.0, problem.dtype, seed)


def _convolution_forward(problem: Problem, backend: Backend) -> Chain:
    """The cross-layer convolution; the bias waits for the launch before."""
    hidden = _state(problem, problem.hidden_size, problem.dtype, seed=1)
    bias = _normal((problem.channels,), 1.0, problem.dtype, seed=3)
    return Chain(
        (hidden, _projected(problem, 2), _weight(problem), bias),
        lambda H, x, *parameters: (backend.convolution(H, x, backend.prepare(parameters)),),
        lambda arrays, outputs: (*arrays[:-1], _with_first(arrays[-1], outputs[0])),
    )


def _convolution_input_gradient(problem: Problem, backend: Backend) -> Chain:
    """The convolution's gradient for the hidden state and the projected input."""
    bias = mx.zeros((problem.channels,))
    return Chain(
        (_state(problem, problem.channels, problem.dtype, seed=1), _weight(problem)),
        lambda d_A, weight: backend.convolution_gradient(d_A, Prepared(weight, bias)),
        _first_replaced,
    )


def _convolution_weight_gradient(problem: Problem, backend: Backend) -> Chain:
    """The convolution's gradient for weight and bias: the steps of a launch, added to the sums."""
    steps = convolution.STEPS
    M, O, dtype = problem.hidden_size, problem.channels, problem.dtype
    hidden = [_state(problem, M, dtype, seed=10 + i) for i in range(steps)]
    projected = [_projected(problem, seed=20 + i) for i in range(steps)]
    d_activations = [_state(problem, O, dtype, seed=30 + i) for i in range(steps)]
    total = (mx.zeros(_weight(problem).shape), mx.zeros((O,)))

    def launch(*arrays: mx.array) -> Arrays:
        series = (arrays[i * steps : (i + 1) * steps] for i in range(3))
        return tuple(backend.weight_gradient(*series, arrays[3 * steps :]))

    start = (*hidden, *projected, *d_activations, *total)
    return Chain(start, launch, lambda arrays, outputs: (*arrays[: 3 * steps], *outputs))


def _memory(problem: Problem) -> tuple[mx.array, mx.array, Prepared]:
    """Activations, memory cell, and gain and bias of the norm among the parameters."""
    M = problem.hidden_size
    shape = (*problem.geometry.tensor_size, M)
    A = _state(problem, problem.channels, problem.dtype, seed=1)
    C = _state(problem, M, mx.float32, seed=2)
    norm = [_normal(shape, 1.0, mx.float32, seed=3 + i) for i in range(2) if problem.norm]
    prepared = Prepared(_weight(problem), mx.zeros((problem.channels,)), *norm)
    mx.eval(A, C, prepared)
    return A, C, prepared


def _memory_forward(problem: Problem, backend: Backend) -> Chain:
    """The memory cell's update; each launch updates the cell that the launch before returned."""
    A, C, prepared = _memory(problem)
    return Chain(
        (C,),
        lambda C: backend.memory_update(A, C, prepared)[:3],
        lambda arrays, outputs: (outputs[1],),
    )


def _memory_backward(problem: Problem, backend: Backend) -> Chain:
    """The update's gradient; each launch takes what the launch before handed over."""
    A, C_before, prepared = _memory(problem)
    H, C, _, residuals = backend.memory_update(A, C_before, prepared)
    d_H = _state(problem, problem.hidden_size, mx.float32, seed=6)
    d_output = d_H[(slice(None), *([-1] * problem.geometry.axes))] + 0
    step = Step(d_output, (H, C_before), (H, C), residuals)

    def gradient(later: Any) -> tuple[mx.array, Any]:
        return backend.memory_gradient(d_H, d_output, None, later, step, prepared)

    _, first = gradient(None)
    mx.eval(d_H, step, first)

    def launch(*handed: mx.array) -> Arrays:
        d_A, before = gradient(with_arrays(first, handed))
        return (d_A, *arrays_of(before, first))

    def results(outputs: Arrays) -> Arrays:
        d_C, d_norm = backend.first_gradients(with_arrays(first, outputs[1:]))
        return (outputs[0], d_C, *d_norm)

    start = tuple(arrays_of(first, first))
    return Chain(start, launch, lambda arrays, outputs: outputs[1:], results)


def _memory_gather(problem: Problem, backend: Backend) -> Chain:
    """The gradient of the memory cell before a step, from what the step handed over."""
    carried = _state(problem, problem.hidden_size, mx.float32, seed=1)
    Q = mx.softmax(_state(problem, problem.geometry.taps, mx.float32, seed=2), axis=-1)

    def launch(carried: mx.array, Q: mx.array) -> Arrays:
        if backend.plain:  # there a step hands over that gradient itself
            return memory_convolution_backward(carried, Q, carried, problem.geometry)[:1]
        return backend.first_gradients(MemoryGradient(carried, Q, None, None))[:1]

    return Chain((carried, Q), launch, lambda arrays, outputs: (outputs[0], arrays[1]))


def _tanh_backward(problem: Problem, backend: Backend) -> Chain:
    """The gradient of a tRNN's activation."""
    d_H = _state(problem, problem.hidden_size, mx.float32, seed=1)
    H = mx.tanh(_state(problem, problem.hidden_size, problem.dtype, seed=2))
    return Chain(
        (d_H, H),
        lambda d_H, H: (backend.tanh_gradient(d_H, None, H),),
        lambda arrays, outputs: (outputs[0].astype(mx.float32), arrays[1]),
    )


def _stack(problem: Problem, backend: Backend) -> Chain:
    """Joining the outputs of 16 steps."""
    start = tuple(_projected(problem, seed) for seed in range(16))
    return Chain(start, lambda *arrays: (backend.stack(arrays),), _first_replaced)


def _first_replaced(arrays: Arrays, outputs: Arrays) -> Arrays:
    return (_with_first(arrays[0], outputs[0]), *arrays[1:])


#: By the kernel's name, those of each time step.
CHAINS = {
    "convolution_forward": _convolution_forward,
    "convolution_input_gradient": _convolution_input_gradient,
    "convolution_weight_gradient": _convolution_weight_gradient,
    "memory_forward": _memory_forward,
    "memory_backward": _memory_backward,
}

#: Those that a sequence launches once, or that only a tRNN does.
RARER_CHAINS = {
    "memory_gather": _memory_gather,
    "tanh_backward": _tanh_backward,
    "stack": _stack,
}


def make_chain(problem: Problem, kernel_name: str, plain: bool = False) -> Chain:
    """Launches of a kernel, or the same as plain operations on the same numbers."""
    make = (CHAINS | RARER_CHAINS)[kernel_name]
    return make(problem, problem.plain if plain else problem.kernels)


def label(choice: Tile | None) -> str:
    """The tile's sizes in words, or what runs in place of the kernel."""
    return "MLX" if choice is None else f"{choice.rows}x{choice.columns}x{choice.depth}"


def products_of(problem: Problem) -> dict[str, Product]:
    """By the convolution kernel's name, the product by whose sizes its tile is looked up."""
    products = convolution.products(
        problem.batch_size, problem.hidden_size, problem.channels, problem.geometry, problem.dtype
    )
    return {product.kernel: product for product in products}


def bare_product(
    problem: Problem, kernel_name: str, steps: int = convolution.STEPS
) -> Chain | None:
    """The matrix product in a convolution kernel's place, in the layout that windows have.

    With N = B·P rows and KM = <K>·M: [N, KM] by [O, KM] transposed; backward [N, O] by [O, KM] and,
    of ``steps`` steps, [steps · N, O] transposed by [steps · N, KM]. ``None`` for the memory
    kernels.
    """
    N, O, KM = problem.rows, problem.channels, problem.geometry.taps * problem.hidden_size
    products = {
        "convolution_forward": ((N, KM), (O, KM), lambda a, b: (a @ b.T,)),
        "convolution_input_gradient": ((N, O), (O, KM), lambda a, b: (a @ b,)),
        "convolution_weight_gradient": ((steps * N, O), (steps * N, KM), lambda a, b: (a.T @ b,)),
    }
    if kernel_name not in products:
        return None
    left, right, multiply = products[kernel_name]
    start = (_normal(left, 1.0, problem.dtype, 1), _normal(right, 1.0, problem.dtype, 2))
    return Chain(start, multiply, _first_replaced)


def products_in_turn(problem: Problem, steps: int) -> Callable[[], None]:
    """The products of ``steps`` time steps, forward and backward, without the projection's."""
    runs = [
        (bare_product(problem, "convolution_forward"), steps),
        (bare_product(problem, "convolution_input_gradient"), steps),
    ]
    whole, rest = divmod(steps, convolution.STEPS)
    for count, of_steps in ((whole, convolution.STEPS), (1, rest)):
        if count and of_steps:
            runs.append((bare_product(problem, "convolution_weight_gradient", of_steps), count))

    def run() -> None:
        for chain, count in runs:
            chain.run(count)

    return run

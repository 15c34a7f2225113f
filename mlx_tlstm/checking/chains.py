"""Launches of single kernels on random arrays, and bare matrix products, for timing them.

In a layer every launch waits for the one before it, and so they do here: a launch reads a number
that the one before wrote. Without that a GPU would run them side by side, which flatters tiles that
leave most of it idle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import KernelBackend, convolution, stacking
from mlx_tlstm.kernels.memory_update import MemoryGradient
from mlx_tlstm.kernels.tiles import Tile
from mlx_tlstm.kernels.tuning import Product
from mlx_tlstm.ops import PlainBackend
from mlx_tlstm.ops.memory_update import memory_convolution_backward
from mlx_tlstm.recurrence.contract import Backend, MemoryUpdate, Prepared, Step

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
        start: The arrays that the first launch takes, evaluated.
        launch: Takes the arrays of a launch, and returns its outputs.
        follow: Takes the arrays and outputs of a launch, and returns the arrays of the next.
    """

    start: Arrays
    launch: Callable[..., Arrays]
    follow: Callable[[Arrays, Arrays], Arrays]

    def once(self) -> Arrays:
        """Outputs of the first launch, not evaluated."""
        return self.launch(*self.start)

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
    hidden = _state(problem, problem.hidden_size, problem.dtype, seed=1)
    bias = _normal((problem.channels,), 1.0, problem.dtype, seed=3)
    start = (hidden, _projected(problem, 2), _weight(problem), bias)
    mx.eval(start)
    return Chain(
        start,
        lambda H, x, *parameters: (backend.convolution(H, x, backend.prepare(parameters)),),
        lambda arrays, outputs: (*arrays[:-1], _with_first(arrays[-1], outputs[0])),
    )


def convolution_forward_chain(problem: Problem) -> Chain:
    """The cross-layer convolution; the bias waits for the launch before."""
    return _convolution_forward(problem, problem.kernels)


def _convolution_input_gradient(problem: Problem, backend: Backend) -> Chain:
    start = (_state(problem, problem.channels, problem.dtype, seed=1), _weight(problem))
    bias = mx.zeros((problem.channels,))
    mx.eval(start)
    return Chain(
        start,
        lambda d_A, weight: backend.convolution_gradient(d_A, Prepared(weight, bias)),
        lambda arrays, outputs: (_with_first(arrays[0], outputs[0]), arrays[1]),
    )


def convolution_input_gradient_chain(problem: Problem) -> Chain:
    """The convolution's gradient for the hidden state and the projected input."""
    return _convolution_input_gradient(problem, problem.kernels)


def _convolution_weight_gradient(problem: Problem, backend: Backend) -> Chain:
    steps = convolution.STEPS
    M, O, dtype = problem.hidden_size, problem.channels, problem.dtype
    hidden = [_state(problem, M, dtype, seed=10 + i) for i in range(steps)]
    projected = [_projected(problem, seed=20 + i) for i in range(steps)]
    d_activations = [_state(problem, O, dtype, seed=30 + i) for i in range(steps)]
    total = (mx.zeros(_weight(problem).shape), mx.zeros((O,)))
    start = (*hidden, *projected, *d_activations, *total)
    mx.eval(start)

    def launch(*arrays: mx.array) -> Arrays:
        series = (arrays[i * steps : (i + 1) * steps] for i in range(3))
        return tuple(backend.weight_gradient(*series, arrays[3 * steps :]))

    return Chain(start, launch, lambda arrays, outputs: (*arrays[: 3 * steps], *outputs))


def convolution_weight_gradient_chain(problem: Problem) -> Chain:
    """The convolution's gradient for weight and bias: the steps of a launch, added to the sums."""
    return _convolution_weight_gradient(problem, problem.kernels)


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
    A, C, prepared = _memory(problem)
    return Chain(
        (C,),
        lambda C: backend.memory_update(A, C, prepared)[:3],
        lambda arrays, outputs: (outputs[1],),
    )


def memory_forward_chain(problem: Problem) -> Chain:
    """The memory cell's update; each launch updates the cell that the launch before returned."""
    return _memory_forward(problem, problem.kernels)


def memory_backward_chain(problem: Problem) -> Chain:
    """The update's gradient; each launch takes what the launch before handed over."""
    A, C_before, prepared = _memory(problem)
    H, C, _, residuals = problem.kernels.memory_update(A, C_before, prepared)
    d_H = _state(problem, problem.hidden_size, mx.float32, seed=6)
    d_output = d_H[(slice(None), *([-1] * problem.geometry.axes))] + 0
    step = Step(d_output, (H, C_before), (H, C), residuals)

    def launch(*handed: mx.array) -> Arrays:
        later = _handed(handed) if handed else None
        d_A, gradient = problem.kernels.memory_gradient(d_H, d_output, None, later, step, prepared)
        return (d_A, *(array for array in gradient if array is not None))

    def _handed(arrays: Arrays) -> MemoryGradient:
        given = iter(arrays)
        carried = next(given)
        Q = next(given) if problem.memory_convolution else None
        sums = (next(given), next(given)) if problem.norm else (None, None)
        return MemoryGradient(carried, Q, *sums)

    mx.eval(d_H, d_output, C)
    _, *start = launch()
    mx.eval(start)
    return Chain(tuple(start), launch, lambda arrays, outputs: tuple(outputs[1:]))


def memory_gather_chain(problem: Problem) -> Chain:
    """The gradient of the memory cell before a step, from what the step handed over."""

    def launch(carried: mx.array, Q: mx.array) -> Arrays:
        return problem.kernels.first_gradients(MemoryGradient(carried, Q, None, None))[:1]

    return Chain(_handed_over(problem), launch, lambda arrays, outputs: (outputs[0], arrays[1]))


def _tanh_backward(problem: Problem, backend: Backend) -> Chain:
    return Chain(
        _hidden_gradient(problem),
        lambda d_H, H: (backend.tanh_gradient(d_H, None, H),),
        lambda arrays, outputs: (outputs[0].astype(mx.float32), arrays[1]),
    )


def tanh_backward_chain(problem: Problem) -> Chain:
    """The gradient of a tRNN's activation."""
    return _tanh_backward(problem, problem.kernels)


def stack_chain(problem: Problem) -> Chain:
    """Joining the outputs of 16 steps."""
    start = tuple(_projected(problem, seed) for seed in range(16))
    mx.eval(start)
    return Chain(start, lambda *arrays: (stacking.stack(arrays),), _first_replaced)


def _handed_over(problem: Problem) -> Arrays:
    carried = _state(problem, problem.hidden_size, mx.float32, seed=1)
    Q = mx.softmax(_state(problem, problem.geometry.taps, mx.float32, seed=2), axis=-1)
    mx.eval(carried, Q)
    return carried, Q


def _hidden_gradient(problem: Problem) -> Arrays:
    d_H = _state(problem, problem.hidden_size, mx.float32, seed=1)
    H = mx.tanh(_state(problem, problem.hidden_size, problem.dtype, seed=2))
    mx.eval(d_H, H)
    return d_H, H


def _first_replaced(arrays: Arrays, outputs: Arrays) -> Arrays:
    return (_with_first(arrays[0], outputs[0]), *arrays[1:])


#: By the kernel's name, those of each time step.
CHAINS = {
    "convolution_forward": convolution_forward_chain,
    "convolution_input_gradient": convolution_input_gradient_chain,
    "convolution_weight_gradient": convolution_weight_gradient_chain,
    "memory_forward": memory_forward_chain,
    "memory_backward": memory_backward_chain,
}


#: Those that a sequence launches once, or that only a tRNN does.
RARER_CHAINS = {
    "memory_gather": memory_gather_chain,
    "tanh_backward": tanh_backward_chain,
    "stack": stack_chain,
}


def plain_chain(problem: Problem, kernel_name: str) -> Chain:
    """The same launches as plain operations, on the same numbers."""
    return _PLAIN_CHAINS[kernel_name](problem)


def _plain_memory_forward(problem: Problem) -> Chain:
    return _memory_forward(problem, problem.plain)


def _plain_memory_backward(problem: Problem) -> Chain:
    A, C, prepared = _memory(problem)
    d_H = _state(problem, problem.hidden_size, mx.float32, seed=6)
    corner = (slice(None), *([-1] * problem.geometry.axes))
    # The kernel's chain starts from what its own first launch hands over.
    d_output = d_H[corner] + 0

    def launch(d_C: mx.array) -> Arrays:
        H, C_after, _, residuals = problem.plain.memory_update(A, C, prepared)
        step = Step(d_output, (H, C), (H, C_after), residuals)
        d_A, handed = problem.plain.memory_gradient(d_H, d_output, d_C, None, step, prepared)
        return d_A, handed.C

    mx.eval(d_output)
    start = launch(mx.zeros(C.shape))[1:]
    mx.eval(start)
    return Chain(start, launch, lambda arrays, outputs: (outputs[1],))


def _plain_memory_gather(problem: Problem) -> Chain:
    def launch(carried: mx.array, Q: mx.array) -> Arrays:
        return (memory_convolution_backward(carried, Q, carried, problem.geometry)[0],)

    return Chain(_handed_over(problem), launch, lambda arrays, outputs: (outputs[0], arrays[1]))


def _plain_tanh_backward(problem: Problem) -> Chain:
    return _tanh_backward(problem, problem.plain)


def _plain_stack(problem: Problem) -> Chain:
    return dataclasses.replace(stack_chain(problem), launch=lambda *arrays: (mx.stack(arrays),))


def _plain_convolution_forward(problem: Problem) -> Chain:
    return _convolution_forward(problem, problem.plain)


def _plain_convolution_input_gradient(problem: Problem) -> Chain:
    return _convolution_input_gradient(problem, problem.plain)


def _plain_convolution_weight_gradient(problem: Problem) -> Chain:
    return _convolution_weight_gradient(problem, problem.plain)


_PLAIN_CHAINS = {
    "convolution_forward": _plain_convolution_forward,
    "convolution_input_gradient": _plain_convolution_input_gradient,
    "convolution_weight_gradient": _plain_convolution_weight_gradient,
    "memory_forward": _plain_memory_forward,
    "memory_backward": _plain_memory_backward,
    "memory_gather": _plain_memory_gather,
    "tanh_backward": _plain_tanh_backward,
    "stack": _plain_stack,
}


def comparable(problem: Problem, kernel_name: str, outputs: Arrays) -> Arrays:
    """The outputs of a kernel that :func:`plain_chain` has too, in its order."""
    if kernel_name != "memory_backward":
        return outputs
    Q = outputs[2] if problem.memory_convolution else None
    d_C, _ = problem.kernels.first_gradients(MemoryGradient(outputs[1], Q, None, None))
    return outputs[0], d_C


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
    mx.eval(start)
    return Chain(
        start,
        multiply,
        lambda arrays, outputs: (_with_first(arrays[0], outputs[0]), arrays[1]),
    )


def bare_products(problem: Problem, steps: int) -> Callable[[], None]:
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

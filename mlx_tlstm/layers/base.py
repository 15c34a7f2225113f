"""The base classes of cells and layers: projection, checks of arguments, running a sequence."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from mlx_tlstm.checks import is_number, plain, require, require_flag, require_integer
from mlx_tlstm.layers.layer import Layer, Trace
from mlx_tlstm.recurrence.loop import Keep, forward, run
from mlx_tlstm.recurrence.transition import Transition

#: Types that weights and hidden state may have; the memory cell is always float32.
DTYPES = ("float32", "float16", "bfloat16")


def normal(shape: tuple[int, ...], fan_in: int) -> mx.array:
    """Initial weights: normal with standard deviation 1 / sqrt(fan in) (the paper gives none)."""
    return mx.random.normal(shape) / math.sqrt(fan_in)


def gate_bias(channels: int, hidden_size: int, fan_in: int, forget_bias: float) -> mx.array:
    """Initial bias ``[channels]`` of gates g, i, f, o and what follows them.

    The forget gate's is ``forget_bias``; the candidate g's is uniform up to 1 / sqrt(fan in), as
    ``nn.Linear``'s; the others are zero. With a zero candidate, memory that no input has reached
    would be zero in all channels, where channel normalisation multiplies the gradient by
    1 / sqrt(epsilon) at every step back.
    """
    bias, M = mx.zeros((channels,)), hidden_size
    limit = 1 / math.sqrt(fan_in)
    bias[:M] = mx.random.uniform(-limit, limit, (M,))
    bias[2 * M : 3 * M] = forget_bias
    return bias


def require_forget_bias(owner: str, forget_bias: object) -> float:
    """``forget_bias`` as a float; ``ValueError`` unless it is a number that float32 holds."""
    valid = is_number(forget_bias) and abs(plain(forget_bias)) <= mx.finfo(mx.float32).max
    require(valid, owner, "forget_bias", "a number that float32 holds", forget_bias)
    return float(plain(forget_bias))


#: MLX and the kernels count elements in 32 bits.
MAX_ELEMENTS = 2**31 - 1


#: Most layers that a step goes through one after the other: each is dozens of MLX's operations.
MAX_LAYERS = 10_000


def require_depth(owner: str, depth: object, most: int = MAX_LAYERS) -> int:
    """``depth`` as a Python integer; ``ValueError`` unless it is one from 1 to ``most``."""
    depth = require_integer(owner, "depth", depth)
    require(depth <= most, owner, "depth", f"{most:,} or less", depth)
    return depth


def require_countable(owner: str, argument: str, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless an array of ``shape`` has no more than MAX_ELEMENTS elements."""
    expected = f"of {MAX_ELEMENTS:,} elements or fewer, by smaller sizes,"
    require(math.prod(shape) <= MAX_ELEMENTS, owner, argument, expected, f"shape {shape}")


class RecurrentCell(nn.Module):
    """Base of the cells: one time step of a recurrence.

    A subclass sets ``transition``, ``weight`` and ``bias``, names its state type, and says which
    shape each array of the state has.

    With ``recompute`` the backward pass computes the activations of each step again, and the
    forward pass keeps fewer arrays; it may be set at any time.
    """

    state_type: ClassVar[type]
    #: L, and the steps between an input and its output.
    depth: int
    delay: int
    #: Shape of each array of the state, without the batch axis.
    state_shape: tuple[int, ...]
    #: The step as plain operations, which works on every device.
    transition: Transition
    #: Whether no output depends on a later input.
    causal: bool = True

    def __init__(self, input_size: int, hidden_size: int, recompute: bool) -> None:
        super().__init__()
        owner = type(self).__name__
        self.recompute = require_flag(owner, "recompute", recompute)
        self.input_size = input_size = require_integer(owner, "input_size", input_size)
        self.hidden_size = hidden_size = require_integer(owner, "hidden_size", hidden_size)
        require_countable(owner, "input_projection.weight", (hidden_size, input_size))
        self.input_projection = nn.Linear(input_size, hidden_size)
        self.input_projection.weight = normal((hidden_size, input_size), input_size)
        self.input_projection.bias = mx.zeros((hidden_size,))

    def arguments(self) -> dict[str, Any]:
        """See :meth:`mlx_tlstm.layers.layer.Layer.arguments`."""
        return {name: getattr(self, name) for name in ("input_size", "hidden_size", "recompute")}

    def _extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments().items())

    def transition_parameters(self) -> list[mx.array]:
        """The arrays that the transition takes, in its order."""
        return [self.weight, self.bias]

    def selected_backend(self) -> str:
        """The name of the backend that the steps ask for, whether or not its kernels are right.

        Raises:
            ValueError: This machine cannot run it.
        """
        return "ops"

    def active_transition(self, batch_size: int) -> Transition:
        """The step as the default device runs it on ``batch_size`` examples."""
        return self.transition

    def keep(self, training: bool) -> Keep:
        """What the time loop keeps for the gradient."""
        return ("states" if self.recompute else "residuals") if training else "nothing"

    def initial_state(self, batch_size: int) -> Any:
        """The zero state of ``batch_size`` sequences; the memory cell is float32."""
        batch_size = require_integer(type(self).__name__, "batch_size", batch_size)
        shape = (batch_size, *self.state_shape)
        require_countable(type(self).__name__, "state", shape)
        return self.state_type(*(mx.zeros(shape, dtype) for dtype in self.state_dtypes()))

    def state_dtypes(self) -> tuple[mx.Dtype, ...]:
        """Types of the state's arrays: the weights' for H, float32 for C."""
        return (self.weight.dtype, mx.float32)[: len(self.state_type._fields)]

    def project(self, x: mx.array) -> mx.array:
        """x W^x + b^x (Eq. 5), or what stands in for it, in the weights' type."""
        dtype = self.weight.dtype
        projected = self.input_projection(x.astype(dtype)).astype(dtype)
        shape = (*x.shape[:-1], self.hidden_size)
        expected = f"a module that makes {shape} of {x.shape}"
        require(
            projected.shape == shape,
            type(self).__name__,
            "input_projection",
            expected,
            projected.shape,
        )
        return projected

    def project_flushed(self, x: mx.array, flush: int) -> mx.array:
        """The projection of x ``[T, B, R]`` and of ``flush`` zero inputs after it."""
        if flush == 0:
            return self.project(x)
        projection = self.input_projection
        if type(projection) is nn.Linear and "bias" in projection:
            # Of a zero input it is the bias, without a product.
            projected = self.project(x)
            rest = projection.bias.astype(projected.dtype)
            rest = mx.broadcast_to(rest, (flush, *projected.shape[1:]))
            return mx.concatenate([projected, rest])
        zeros = mx.zeros((flush, *x.shape[1:]), x.dtype)
        return self.project(mx.concatenate([x, zeros]))

    def check_input(self, owner: str, x: Any, ndims: tuple[int, ...], shape: str) -> None:
        """Raise ``ValueError`` unless ``x`` is a float array of the right rank and width."""
        require(isinstance(x, mx.array), owner, "x", "an mx.array", x)
        floating = mx.issubdtype(x.dtype, mx.floating)
        require(floating, owner, "x", "of a floating-point dtype", x.dtype)
        valid = x.ndim in ndims and x.shape[-1] == self.input_size and x.size > 0
        expected = f"of shape {shape} with input size {self.input_size} and no empty axis"
        require(valid, owner, "x", expected, x.shape)

    def check_state(self, owner: str, state: Any, batch_size: int | None = None) -> Any:
        """The state in the cell's types; ``ValueError`` where a shape or type is wrong.

        Without ``batch_size`` the first array's counts.
        """
        kind = self.state_type
        unnamed = type(state) is tuple and len(state) == len(kind._fields)
        valid = unnamed or isinstance(state, kind)  # another layer's may have the same shapes
        require(valid, owner, "state", f"a {kind.__name__}", state)
        for name, array in zip(kind._fields, state, strict=True):
            argument = f"state.{name}"
            require(isinstance(array, mx.array), owner, argument, "an mx.array", array)
            if batch_size is None:
                batch_size = array.shape[0] if array.ndim else 1
            shape = (batch_size, *self.state_shape)
            require(array.shape == shape, owner, argument, f"of shape {shape}", array.shape)
            floating = mx.issubdtype(array.dtype, mx.floating)
            require(floating, owner, argument, "of a floating-point dtype", array.dtype)
        types = zip(state, self.state_dtypes(), strict=True)
        return kind(*(array.astype(dtype) for array, dtype in types))

    def __call__(self, x: mx.array, state: Any) -> Any:
        """The state after one input.

        Args:
            x: Input of one time step, ``[B, R]``.
            state: State before it.

        Raises:
            ValueError: A shape or dtype is wrong.
        """
        owner = type(self).__name__
        self.check_input(owner, x, (2,), "[B, R]")
        state = self.check_state(owner, state, x.shape[0])
        _, after = run(
            self.active_transition(x.shape[0]),
            self.transition_parameters(),
            self.project(x)[None],
            state,
            skip=0,
            final_step=1,
            keep=self.keep(self.training),
        )
        return self.state_type(*after)

    def output(self, state: Any) -> mx.array:
        """The output ``[B, M]`` in ``state``: the hidden state at the corner far from the input."""
        state = self.check_state(type(self).__name__, state)
        return self.transition.backend.output(state[0])


class RecurrentLayer(Layer):
    """Base of the layers: a cell run over a sequence.

    In evaluation mode (``layer.eval()``) nothing is kept for a gradient, which saves memory. A
    gradient can be asked for all the same. On kernels it runs the forward pass a second time. On
    plain operations it is MLX's own gradient: the same values for several times the memory and
    time. Only plain operations can be exported with ``mx.export_function``.
    """

    #: A layer takes its cell's arguments, which are listed there and nowhere else.
    cell_type: ClassVar[type[RecurrentCell]]
    cell: RecurrentCell
    __signature__: ClassVar[inspect.Signature | None]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__init__ is not RecurrentLayer.__init__
        cls.__signature__ = None if own else inspect.signature(cls.cell_type)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.cell = self.cell_type(*arguments, **options)

    @property
    def delay(self) -> int:
        """Steps between an input and its output: L - 1, or 0 for the stacked LSTM."""
        return self.cell.delay

    @property
    def causal(self) -> bool:
        """Whether no output depends on a later input; layer normalisation breaks it if L > 1."""
        return self.cell.causal

    @property
    def input_size(self) -> int:
        return self.cell.input_size

    @property
    def hidden_size(self) -> int:
        return self.cell.hidden_size

    @property
    def dtype(self) -> mx.Dtype:
        return self.cell.weight.dtype

    def arguments(self) -> dict[str, Any]:
        return self.cell.arguments()

    def initial_state(self, batch_size: int) -> Any:
        return self.cell.initial_state(batch_size)

    def check_input(self, owner: str, x: Any, ndims: tuple[int, ...], shape: str) -> None:
        self.cell.check_input(owner, x, ndims, shape)

    @property
    def depth(self) -> int:
        """L, the layers or steps that an input passes on its way to the output."""
        return self.cell.depth

    def __call__(
        self, x: mx.array, state: Any = None, *, flush: bool = True
    ) -> tuple[mx.array, Any]:
        """Run whole sequences, and return an output for every input.

        An output comes ``delay`` steps after its input, so that ``delay`` more steps follow the
        last input. They do not count for the state: the returned one is that after the T inputs,
        from which a call on the next chunk of the sequences goes on.

        Args:
            x: Inputs ``[B, T, R]``, or ``[T, R]`` for one sequence.
            state: State before the first input; ``None`` is the zero state.
            flush: Whether to run those additional steps; without them this is :meth:`stream`.

        Returns:
            Outputs ``[B, T, M]`` (``[T, M]`` for one sequence), where ``y[:, t]`` answers
            ``x[:, :t+1]``, and the state (its batch axis is always there).

        Raises:
            ValueError: A shape or dtype is wrong.
        """
        cell, skip = self.cell, self.delay if flush else 0
        projected, state, batched = self._prepare(x, state, skip)
        outputs, after = run(
            cell.active_transition(projected.shape[1]),
            cell.transition_parameters(),
            projected,
            state,
            skip=skip,
            final_step=projected.shape[0] - skip,
            keep=cell.keep(self.training),
        )
        outputs = outputs.swapaxes(0, 1)
        return outputs if batched else outputs[0], cell.state_type(*after)

    def stream(self, x: mx.array, state: Any = None) -> tuple[mx.array, Any]:
        """Run a part of a stream, with exactly one step for each input.

        Arguments and results are those of a call, except that ``y[:, t]`` is the output for the
        input ``delay`` steps before. The first ``delay`` outputs of a stream belong to no input.
        """
        return self(x, state, flush=False)

    def trace(self, x: mx.array, state: Any = None) -> Trace:
        """Every step's state and gates, for inspection; see :class:`Trace`.

        It costs the memory of all steps, and its gradient is MLX's own through plain operations.
        """
        cell, skip = self.cell, self.delay
        projected, state, _ = self._prepare(x, state, skip)
        outputs, _ = forward(
            cell.transition,
            skip,
            projected.shape[0],  # whole states to the end
            "residuals",
            steps := [],
            projected,
            tuple(state),
            cell.transition_parameters(),
            widen=True,
        )
        states = [cell.state_type(*step.after) for step in steps]
        residuals = [step.residuals for step in steps]
        return Trace(outputs.swapaxes(0, 1), _over_time(states), _over_time(residuals))

    def _prepare(self, x: mx.array, state: Any, flush: int) -> tuple[mx.array, Any, bool]:
        """Projected inputs ``[T + flush, B, M]``, the checked state, and whether x had a batch."""
        owner, cell = type(self).__name__, self.cell
        cell.check_input(owner, x, (2, 3), "[B, T, R] or [T, R]")
        batched = x.ndim == 3
        if not batched:
            x = x[None]
        batch_size = x.shape[0]
        if state is None:
            state = cell.initial_state(batch_size)
        else:
            state = cell.check_state(owner, state, batch_size)
        return cell.project_flushed(x.swapaxes(0, 1), flush), state, batched


def _over_time(trees: Sequence[Any]) -> Any:
    """Steps of arrays ``[B, …]`` (or trees of them) as ``[B, T', …]``; ``None`` stays."""
    return tree_map(lambda *a: None if a[0] is None else mx.stack(a, axis=1), *trees)

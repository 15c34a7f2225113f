"""A layer around a cell of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from mlx_tlstm.checks import is_integer, require, require_integer
from mlx_tlstm.layers.base import RecurrentCell
from mlx_tlstm.layers.layer import Layer, Trace
from mlx_tlstm.recurrence.scan import run_scan
from mlx_tlstm.recurrence.trees import named_arrays, require_same_form


class Recurrent(Layer):
    """A cell of one's own over sequences: ``x [B, T, R]`` to outputs ``y [B, T, M]``.

    The cell is any module with two methods::

        output, state = cell(x, state)  # x [B, R], output [B, M], and the next state
        state = cell.initial_state(batch_size)

    where the state is an array or a tree of them (see :func:`mlx_tlstm.scan`), of the same shapes
    and types after each step. Each array is ``[B, …]``, a row for each sequence of the batch, so
    that training can cut a batch into parts; one without axes is a number that all sequences share.

    The layer is used as those of this package, by a :class:`SequenceModel`, a
    :class:`StreamingSession`, ``training.evaluate`` and ``visualize.record``. An output follows its
    input at once: its delay is 0. Time and memory grow with T alone, also of the gradient. Inputs
    of a floating-point type get that of the cell's first floating-point weight.

    Where the cell has an attribute ``input_size``, R, inputs are checked against it. A read-out
    needs M: the cell's attribute ``hidden_size`` or, without it, the last axis of all arrays of the
    state, if they have one size.

    Args:
        cell: The cell.
        checkpoint: In training mode, keep for the gradient only every ``checkpoint``-th state; see
            :func:`mlx_tlstm.scan`.

    Raises:
        ValueError: ``cell`` is no such module, its state has another form, or ``checkpoint`` is no
            positive integer.
    """

    def __init__(self, cell: nn.Module, checkpoint: int | None = None) -> None:
        super().__init__()
        owner = type(self).__name__
        # nn.Module gives no reason where a method is missing.
        valid = isinstance(cell, nn.Module) and callable(cell)
        valid = valid and callable(getattr(cell, "initial_state", None))
        expected = "an nn.Module with __call__(x, state) and initial_state(batch_size)"
        require(valid, owner, "cell", expected, cell)
        own = isinstance(cell, (RecurrentCell, Layer))
        expected = "a cell of your own, and no layer (TLSTM, … are those of this package's cells)"
        require(not own, owner, "cell", expected, cell)
        if checkpoint is not None:
            checkpoint = require_integer(owner, "checkpoint", checkpoint)
        _require_rows(owner, cell)
        self.cell = cell
        self.checkpoint = checkpoint
        #: What :func:`mlx_tlstm.make_layer` was asked for, where it made the layer.
        self.made_by: Any = None

    @property
    def input_size(self) -> int | None:
        made = None if self.made_by is None else self.made_by.input_size
        return getattr(self.cell, "input_size", made)

    @property
    def hidden_size(self) -> int:
        owner = type(self).__name__
        size = getattr(self.cell, "hidden_size", None)
        if size is None:
            arrays = named_arrays(owner, "initial_state", self.cell.initial_state(1))
            widths = {array.shape[-1] for _, array in arrays if array.ndim > 1}
            size = widths.pop() if len(widths) == 1 else None
        expected = "set to the width of an output, which the state does not tell,"
        valid = is_integer(size) and size > 0
        require(valid, owner, "cell.hidden_size", expected, size)
        return size

    @property
    def dtype(self) -> mx.Dtype:
        return self._weight_type() or mx.float32

    def _weight_type(self) -> mx.Dtype | None:
        types = [array.dtype for _, array in tree_flatten(self.cell.parameters())]
        return next((kind for kind in types if mx.issubdtype(kind, mx.floating)), None)

    def arguments(self) -> dict[str, Any]:
        names = ("input_size", "hidden_size", "recompute", "depth", "variant")
        return {name: getattr(self.made_by, name) for name in names}

    def initial_state(self, batch_size: int) -> Any:
        """The cell's.

        Raises:
            ValueError: ``batch_size`` is no positive integer, or the cell makes no tree of arrays.
        """
        owner = type(self).__name__
        batch_size = require_integer(owner, "batch_size", batch_size)
        state = self.cell.initial_state(batch_size)
        named_arrays(owner, "initial_state", state)
        return state

    def check_input(self, owner: str, x: Any, ndims: tuple[int, ...], shape: str) -> None:
        require(isinstance(x, mx.array), owner, "x", "an mx.array", x)
        size = self.input_size
        valid = x.ndim in ndims and x.size > 0 and size in (None, x.shape[-1])
        width = "" if size is None else f" with input size {size}"
        require(valid, owner, "x", f"of shape {shape}{width} and no empty axis", x.shape)

    def __call__(self, x: mx.array, state: Any = None) -> tuple[mx.array, Any]:
        """Run whole sequences, and return an output for every input.

        Args:
            x: Inputs ``[B, T, R]``, or ``[T, R]`` for one sequence.
            state: State before the first input; ``None`` is the cell's initial state.

        Returns:
            Outputs ``[B, T, M]`` (``[T, M]`` for one sequence), where ``y[:, t]`` answers
            ``x[:, :t+1]``, and the state after the inputs (its batch axis is always there), from
            which a call on the next chunk of the sequences goes on.

        Raises:
            ValueError: A shape or type is wrong, or the cell does not do what :class:`Recurrent`
                says.
        """
        batched, outputs, after = self._run(x, state, lambda output, _: output)
        return outputs if batched else outputs[0], after

    def trace(self, x: mx.array, state: Any = None) -> Trace:
        """Every step's state; ``residuals`` are ``None``. It costs the memory of all steps."""
        _, (outputs, states), _ = self._run(x, state, lambda *both: both)
        return Trace(outputs, states, None)

    def _run(
        self, x: mx.array, state: Any, kept: Callable[[mx.array, Any], Any]
    ) -> tuple[bool, Any, Any]:
        """Whether x had a batch, what is kept of each step's output and state, the last state."""
        owner = type(self).__name__
        self.check_input(owner, x, (2, 3), "[B, T, R] or [T, R]")
        batched = x.ndim == 3
        x = x if batched else x[None]
        if mx.issubdtype(x.dtype, mx.floating):
            x = x.astype(self._weight_type() or x.dtype)
        first = self.initial_state(x.shape[0])
        if state is None:
            state = first
        else:
            require_same_form(owner, "state", state, first, "as the cell's initial_state")

        width = getattr(self.cell, "hidden_size", None)

        def step(state: Any, x: mx.array) -> tuple[Any, Any]:
            result = self.cell(x, state)
            pair = isinstance(result, tuple) and len(result) == 2
            require(pair, owner, "cell", "a module that returns (output, state)", result)
            output, state = result
            shape = output.shape if isinstance(output, mx.array) else ()
            valid = len(shape) == 2 and shape[0] == x.shape[0] and width in (None, shape[1])
            expected = f"an mx.array [{x.shape[0]}, {'M' if width is None else width}]"
            require(valid, owner, "output", expected, shape or output)
            return state, kept(output, state)

        after, ys = run_scan(
            owner,
            step,
            state,
            x.swapaxes(0, 1),
            name="cell",
            checkpoint=self.checkpoint if self.training else None,
            plain=not self.training,
        )
        return batched, tree_map(_batch_first, ys), after


def _require_rows(owner: str, cell: nn.Module) -> None:
    """Raise ``ValueError`` unless a batch's initial state has a row for each of its sequences."""
    one, two = (named_arrays(owner, "initial_state", cell.initial_state(B)) for B in (1, 2))
    names, others = ([name for name, _ in arrays] for arrays in (one, two))
    expected = f"of the same arrays for 2 sequences as for 1 ({', '.join(names)})"
    require(names == others, owner, "initial_state", expected, others)
    for (name, first), (_, second) in zip(one, two, strict=True):
        rows = first.shape[:1] == (1,) and second.shape == (2, *first.shape[1:])
        number = first.shape == second.shape == ()
        expected = "an array [B, …], the batch first, or a number that all sequences share,"
        got = f"shapes {first.shape} and {second.shape} for 1 and 2 sequences"
        require(rows or number, owner, name, expected, got)


def _batch_first(array: mx.array | None) -> mx.array | None:
    """Steps ``[T, B, …]`` as ``[B, T, …]``; those of a number, ``[T]``, and ``None`` stay."""
    return array if array is None or array.ndim < 2 else array.swapaxes(0, 1)

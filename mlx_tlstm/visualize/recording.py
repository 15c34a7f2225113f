"""Every step of a layer on a sequence, as NumPy arrays to measure and draw."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_tlstm import ops
from mlx_tlstm.checks import is_integer, plain, require
from mlx_tlstm.layers.base import RecurrentLayer
from mlx_tlstm.layers.layer import LAYERS, Layer
from mlx_tlstm.recurrence.trees import by_name


@dataclasses.dataclass(frozen=True)
class Recording:
    """States, gates and memory kernels of every step and location, in float32.

    Shapes: ``B`` batch, T inputs, T' = T + delay steps, ``*P`` tensor size (``L`` for stacked
    layers), ``*K`` kernel size, M channels.

    Attributes:
        layer: Name of the layer's class, or of the cell's in a :class:`Recurrent`.
        delay: Steps between an input and its output; output t is read at step t + delay.
        outputs: ``[B, T, M]``, as the layer returns them.
        hidden: Hidden state H after each step, ``[B, T', *P, M]``. Of a cell of your own these are
            the outputs, at one location.
        cell: Memory cell C, of the same shape. A tRNN and a cell of your own have neither it nor
            the following: they are ``None``.
        new_content: G = tanh(A^g), of the same shape.
        input_gate: I, of the same shape.
        forget_gate: F, of the same shape.
        output_gate: O, of the same shape.
        kernels: Softmax kernels Q of the memory convolution, ``[B, T', *P, *K]``; ``None`` for a
            layer without memory convolution.
        states: All arrays of the layer's state by name, ``[B, T', …]`` after each step. A name is
            a path, as in ``memory[0]``; it is empty where the state is one array.
    """

    layer: str
    delay: int
    outputs: np.ndarray
    hidden: np.ndarray
    cell: np.ndarray | None = None
    new_content: np.ndarray | None = None
    input_gate: np.ndarray | None = None
    forget_gate: np.ndarray | None = None
    output_gate: np.ndarray | None = None
    kernels: np.ndarray | None = None
    states: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """B, the sequences."""
        return self.hidden.shape[0]

    @property
    def steps(self) -> int:
        """T', the inputs and the ``delay`` steps that bring out the last outputs."""
        return self.hidden.shape[1]

    @property
    def tensor_size(self) -> tuple[int, ...]:
        """P of each axis; ``(L,)`` for stacked layers."""
        return self.hidden.shape[2:-1]

    @property
    def place(self) -> str:
        """What a place in the tensor is called: ``"location"``, or ``"layer"`` of a stack."""
        return "layer" if self.layer == "StackedLSTM" else "location"


def record(layer: Layer, x: mx.array, state: Any = None) -> Recording:
    """Run a layer and keep what each step computed; the layer stays as it is.

    Args:
        layer: A :class:`TLSTM`, :class:`TRNN`, :class:`StackedLSTM` or :class:`Recurrent`.
        x: Inputs ``[B, T, R]``, or ``[T, R]`` for one sequence.
        state: State before the first input; ``None`` is the zero state.

    Raises:
        ValueError: ``layer`` is no layer, or a shape or dtype is wrong.
    """
    require_layer("record", layer)
    trace = layer.trace(x, state)
    states = {name: _as_numpy(array) for name, array in by_name(trace.states).items()}
    outputs = _as_numpy(trace.outputs)
    if not isinstance(layer, RecurrentLayer):
        name = type(layer.cell).__name__
        return Recording(name, layer.delay, outputs, outputs[:, :, None], states=states)
    values: dict[str, mx.array] = {}
    if isinstance(trace.residuals, ops.Residuals):
        values |= _gates(trace.residuals)
        if trace.residuals.Q is not None:
            shape = (*trace.residuals.Q.shape[:-1], *layer.cell.geometry.kernel_size)
            values["kernels"] = trace.residuals.Q.reshape(shape)
    elif trace.residuals is not None:  # a record a layer of a stack
        gates = [_gates(residuals) for residuals in trace.residuals]
        values |= {name: mx.stack([g[name] for g in gates], axis=2) for name in gates[0]}
    parts = states | {name: _as_numpy(array) for name, array in values.items()}
    return Recording(type(layer).__name__, layer.delay, outputs, states=states, **parts)


def _as_numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


def diagonal(tensor_size: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Indices, from 0, of the locations from ``[1, …, 1]`` to ``[P, …, P]``, one array an axis.

    There are as many as the longest axis has; on a shorter one the nearest location counts.
    """
    count = max(tensor_size)
    share = np.arange(count) / max(1, count - 1)
    return tuple(np.rint(share * (size - 1)).astype(int) for size in tensor_size)


def on_diagonal(values: np.ndarray, tensor_size: tuple[int, ...]) -> np.ndarray:
    """The diagonal of values ``[B, T', *P]``, ``[B, T', P]``; see :func:`diagonal`."""
    return values[(slice(None), slice(None), *diagonal(tensor_size))]


def require_layer(owner: str, layer: object) -> None:
    """Raise ``ValueError`` unless ``layer`` is a layer."""
    require(isinstance(layer, Layer), owner, "layer", LAYERS, layer)


def require_part(owner: str, recording: object, name: str) -> np.ndarray:
    """The array ``name`` of a recording; ``ValueError`` where its layer has no such part."""
    require(isinstance(recording, Recording), owner, "recording", "a Recording", recording)
    array = getattr(recording, name)
    expected = {
        "cell": "of a TLSTM or StackedLSTM, with a memory cell",
        "kernels": "of a layer with memory convolution",
    }[name]
    require(array is not None, owner, "recording", expected, recording.layer)
    return array


def require_example(owner: str, recording: Recording, example: object) -> int:
    """``example`` as a Python integer; ``ValueError`` unless it numbers a sequence, from 0."""
    last = recording.batch_size - 1
    valid = is_integer(example) and 0 <= plain(example) <= last
    require(valid, owner, "example", f"an integer from 0 to {last}", example)
    return plain(example)


def _gates(residuals: ops.Residuals) -> dict[str, mx.array]:
    return {
        "new_content": residuals.G,
        "input_gate": residuals.I,
        "forget_gate": residuals.F,
        "output_gate": residuals.O,
    }

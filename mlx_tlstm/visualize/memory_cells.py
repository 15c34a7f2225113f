"""Drawings of the memory cell: along the diagonal (Fig. 6), and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlx_tlstm.checks import is_integer, plain, require
from mlx_tlstm.visualize.canvas import canvas, location_names, over_steps, scaled
from mlx_tlstm.visualize.measures import diagonal_means, memory_offsets
from mlx_tlstm.visualize.recording import (
    Recording,
    diagonal,
    on_diagonal,
    require_example,
    require_part,
)
from mlx_tlstm.visualize.symbols import (
    ROW_HEIGHT,
    STRIP,
    check_symbols,
    check_values,
    draw_strip,
    write_rows,
)

#: Inches of a step, of a location, and of the picture's width at least and at most.
_COLUMN, _ROW = 0.17, 0.28
_NARROWEST, _WIDEST = 5.0, 12.0
#: Up to as many locations each has its label.
_LABELLED = 16


def draw_diagonal(
    recording: Recording,
    example: int = 0,
    inputs: Sequence[str] | np.ndarray | mx.array | None = None,
    targets: Sequence[str] | None = None,
    predictions: Sequence[str] | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Draw the channel means of the memory cell along the diagonal, over the steps (Fig. 6).

    Rows are locations from the input's ``[1, …, 1]`` to the output's ``[P, …, P]``, columns steps
    1 … T + L - 1; the picture is scaled to [0, 1]. Under it stand each input where it is read,
    and each target and prediction where the output is, ``delay`` steps later. Predictions that
    are not their target are bold.

    Args:
        recording: From :func:`record`.
        example: Number of the sequence, from 0.
        inputs: T symbols, or values ``[T]`` or ``[T, R]``, which are drawn in grey.
        targets: T symbols; an empty string draws nothing.
        predictions: T symbols, like ``targets``.
        axes: Where to draw; ``None`` makes a figure.

    Returns:
        The figure.

    Raises:
        ValueError: The layer has no memory cell, or an argument does not fit the recording.
    """
    owner = "draw_diagonal"
    require_part(owner, recording, "cell")
    example = require_example(owner, recording, example)
    inputs, targets, predictions = map(_as_given, (inputs, targets, predictions))
    length, first_output = recording.outputs.shape[1], 1 + recording.delay
    rows: dict[str, tuple[Sequence[str], int]] = {}
    values = inputs if isinstance(inputs, np.ndarray) else None
    if values is not None:
        check_values(owner, "inputs", values, length)
    given = {"input": None if values is not None else inputs}
    given |= {"target": targets, "output": predictions}
    arguments = {"input": "inputs", "target": "targets", "output": "predictions"}
    for name, symbols in given.items():
        if symbols is not None:
            check_symbols(owner, arguments[name], symbols, length)
            rows[name] = (symbols, 1 if name == "input" else first_output)
    means = scaled(owner, diagonal_means(recording)[example].T)
    width = min(_WIDEST, max(_NARROWEST, _COLUMN * recording.steps + 1.8))
    height = 1.1 + _ROW * max(3, len(means)) + ROW_HEIGHT / 72 * len(rows)
    strip = 0.0 if values is None else STRIP * max(3, len(means))
    figure, axes = canvas(owner, axes, (width, height + _ROW * strip))
    image = over_steps(axes, means, 0, 1)
    _label_diagonal(axes, recording)
    axes.set_title("memory cell, mean over channels, along the diagonal", fontsize="medium")
    figure.colorbar(image, ax=axes, label="scaled to [0, 1]", pad=0.01, aspect=12)
    if values is not None:
        draw_strip(axes, _as_columns(values), strip)
    if rows:
        points = 72 * axes.get_position().width * figure.get_figwidth() / recording.steps
        write_rows(axes, rows, points, {"output": _wrong(targets, predictions)})
    return figure


def draw_memory_offsets(
    recording: Recording,
    example: int | None = None,
    tensor_axis: int | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Draw where the memory of each diagonal location comes from, over the steps.

    The offset is that of :func:`memory_offsets`: -1 means that memory moves towards the output
    like a shift register, 0 that it holds still.

    Args:
        recording: From :func:`record`.
        example: Number of the sequence, from 0; ``None`` takes the mean over all.
        tensor_axis: Number of the tensor axis, from 0, along which the offset is taken; ``None``
            takes the mean over the axes, where -1/2 may be a move along one of two.
        axes: Where to draw; ``None`` makes a figure.

    Returns:
        The figure.

    Raises:
        ValueError: The layer has no memory convolution, or an argument does not fit.
    """
    owner = "draw_memory_offsets"
    kernels = require_part(owner, recording, "kernels")
    if example is not None:
        example = require_example(owner, recording, example)
    count = len(recording.tensor_size)
    if tensor_axis is not None:
        tensor_axis = plain(tensor_axis)
        valid = is_integer(tensor_axis) and 0 <= tensor_axis < count
        require(valid, owner, "tensor_axis", f"an integer from 0 to {count - 1}", tensor_axis)
    along = range(count) if tensor_axis is None else [tensor_axis]
    offsets = memory_offsets(recording)[..., along].mean(axis=-1)
    offsets = on_diagonal(offsets, recording.tensor_size)
    picture = (offsets.mean(axis=0) if example is None else offsets[example]).T
    sizes = kernels.shape[2 + count :]
    width = min(_WIDEST, max(_NARROWEST, _COLUMN * recording.steps + 1.8))
    figure, axes = canvas(owner, axes, (width, 1.5 + _ROW * max(5, len(picture))))
    image = over_steps(
        axes, picture, -max(K // 2 for K in sizes), max(0, *(K - 1 - K // 2 for K in sizes))
    )
    _label_diagonal(axes, recording)
    title = "where memory comes from: mean offset under Q"
    if count > 1:
        which = "mean over axes" if tensor_axis is None else f"axis {tensor_axis + 1} of {count}"
        title += f"\n({which})"
    axes.set_title(title, fontsize="medium")
    label = "offset (locations)\n-1: from the input's side\n0: from the same place"
    if max(sizes) > 2:
        label += "\n+1: from the output's side"
    figure.colorbar(image, ax=axes, label=label, pad=0.01, aspect=12)
    return figure


def _as_given(values: Any) -> Any:
    """MLX's arrays as NumPy's, and NumPy's of strings as lists."""
    if isinstance(values, mx.array):
        return np.array(values.astype(mx.float32))
    strings = isinstance(values, np.ndarray) and values.dtype.kind == "U"
    return values.tolist() if strings else values


def _as_columns(values: np.ndarray) -> np.ndarray:
    return values[:, None] if values.ndim == 1 else values


def _wrong(targets: Sequence[str] | None, predictions: Sequence[str] | None) -> set[int]:
    if targets is None or predictions is None:
        return set()
    pairs = enumerate(zip(targets, predictions, strict=True))
    return {index for index, (target, prediction) in pairs if target and prediction != target}


def _label_diagonal(axes: Axes, recording: Recording) -> None:
    """Names of the rows, from the input's end at the top to the output's at the bottom."""
    names = location_names(diagonal(recording.tensor_size))
    count = len(names)
    rows = np.arange(1, count + 1)
    if count > _LABELLED:
        rows = np.unique(np.linspace(1, count, _LABELLED // 2).round().astype(int))
    labels = [names[row - 1] for row in rows]
    if count > 1:
        labels[0], labels[-1] = f"input  {labels[0]}", f"output  {labels[-1]}"
    axes.set_yticks(rows, labels)
    axes.set_ylabel(recording.place)

"""Drawing of the memory cell at all locations, as small maps over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlx_tlstm.checks import as_integers, require
from mlx_tlstm.visualize.canvas import COLOUR_MAP, canvas, scaled
from mlx_tlstm.visualize.measures import channel_means
from mlx_tlstm.visualize.recording import Recording, require_example, require_part

#: Maps that are drawn unless the caller names the steps, and maps in a row.
_MAPS, _MAPS_IN_A_ROW = 24, 8
#: Inches of the picture at least, and of what stands beside the maps.
_NARROWEST, _BESIDE = 5.0, 1.6


def draw_memory_maps(
    recording: Recording,
    example: int = 0,
    steps: Sequence[int] | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Draw the channel means of the memory cell at all locations, a small map for each step.

    The input enters at the top left of each map, and the output leaves at the bottom right. One
    axis, or stacked layers, run downwards; of three axes the first one's slices stand side by
    side. All maps share one scale, on which the whole sequence spans [0, 1].

    Args:
        recording: From :func:`record`.
        example: Number of the sequence, from 0.
        steps: Steps to draw, from 1; ``None`` takes up to 24 of them, evenly spaced.
        axes: Where to draw; ``None`` makes a figure.

    Returns:
        The figure.

    Raises:
        ValueError: The layer has no memory cell or more than three axes, or an argument does not
            fit the recording.
    """
    owner = "draw_memory_maps"
    require_part(owner, recording, "cell")
    example = require_example(owner, recording, example)
    size = recording.tensor_size
    require(len(size) <= 3, owner, "recording", "of a layer of up to three axes", size)
    last = recording.steps
    if steps is None:
        steps = np.unique(np.linspace(1, last, min(last, _MAPS)).round().astype(int)).tolist()
    given, steps = steps, as_integers(steps)
    valid = bool(steps) and min(steps) >= 1 and max(steps) <= last
    require(valid, owner, "steps", f"integers from 1 to {last}", given)
    means = scaled(owner, channel_means(recording)[example])
    columns = min(len(steps), _MAPS_IN_A_ROW)
    rows = math.ceil(len(steps) / columns)
    shape = _as_map(means[0]).shape
    cell = 0.8 / max(shape)  # of the unit square that each map has
    unit = min(1.1, max(0.8, 0.16 * max(shape)))  # inches
    wide = min(1.0, 0.35 + cell * shape[1]) if shape[1] < shape[0] else 1.0
    tall = 0.25 + cell * shape[0]
    width = max(_NARROWEST, columns * wide * unit + _BESIDE)
    figure, axes = canvas(owner, axes, (width, rows * tall * unit + 1.2))
    for number, step in enumerate(steps):
        row, column = divmod(number, columns)
        left, top = wide * (column + 0.5) - cell * shape[1] / 2, row * tall + 0.22
        image = axes.imshow(
            _as_map(means[step - 1]),
            cmap=COLOUR_MAP,
            vmin=0,
            vmax=1,
            interpolation="nearest",
            extent=(left, left + cell * shape[1], top + cell * shape[0], top),
        )
        axes.text(wide * (column + 0.5), top - 0.03, str(step), ha="center", fontsize="x-small")
    axes.set(
        xlim=(0, (width - _BESIDE) / unit),
        ylim=(rows * tall, 0),
        xticks=[],
        yticks=[],
        aspect="equal",
    )
    axes.spines[:].set_visible(False)
    title = "memory cell, mean over channels\n(above each map its step)"
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(_map_caption(recording), fontsize="small")
    figure.colorbar(image, ax=axes, label="scaled to [0, 1]", pad=0.01, aspect=15)
    return figure


def _as_map(means: np.ndarray) -> np.ndarray:
    """``[*P]`` as one picture; a gap of no value separates slices."""
    if means.ndim == 1:
        return means[:, None]
    if means.ndim == 2:
        return means
    gap = np.full((means.shape[1], 1), np.nan, means.dtype)
    return np.concatenate([part for piece in means for part in (gap, piece)][1:], axis=1)


def _map_caption(recording: Recording) -> str:
    if recording.place == "layer":
        return "layer 1 (input) at the top, L (output) at the bottom"
    return {
        1: "location 1 (input) at the top, P (output) at the bottom",
        2: "first axis downwards, second to the right;\n"
        "input at the top left, output at the bottom right",
        3: "a slice for each place on the first axis; second axis downwards,\n"
        "third to the right; input at the top left, output at the bottom right",
    }[len(recording.tensor_size)]

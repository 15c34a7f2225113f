"""Drawings of which outputs and locations an input reaches."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlx_tlstm.checks import require
from mlx_tlstm.visualize.canvas import COLOUR_MAP, canvas, step_ticks

#: Powers of ten below the largest gradient that are told apart.
_DECADES = 6


def draw_receptive_field(field: np.ndarray, axes: Axes | None = None) -> Figure:
    """Draw which inputs each output depends on, and how much.

    Args:
        field: From :func:`receptive_field`, ``[T, T]``. Zeros, where no path leads, are grey.
        axes: Where to draw; ``None`` makes a figure.

    Returns:
        The figure.

    Raises:
        ValueError: ``field`` is no square of numbers of 0 or more.
    """
    owner = "draw_receptive_field"
    valid = isinstance(field, np.ndarray) and field.ndim == 2 and field.size > 0
    valid = valid and field.shape[0] == field.shape[1] and bool((field >= 0).all())
    require(valid, owner, "field", "a square NumPy array of numbers of 0 or more", field)
    largest = field.max() or 1.0
    picture = np.log10(field / largest, where=field > 0, out=np.full(field.shape, np.nan))
    T = len(field)
    figure, axes = canvas(owner, axes, (5.2, 4.2))
    image = axes.imshow(
        picture,
        cmap=COLOUR_MAP,
        vmin=-_DECADES,
        vmax=0,
        interpolation="nearest",
        extent=(0.5, T + 0.5, T + 0.5, 0.5),
    )
    axes.set_xlabel("input s (step)")
    axes.set_ylabel("output t (step)")
    axes.set_xticks(step_ticks(T))
    axes.set_yticks(step_ticks(T))
    axes.set_title("receptive field: |∂y_t / ∂x_s| (grey: none)", fontsize="medium")
    label = "log10 of the norm, relative to the largest"
    figure.colorbar(image, ax=axes, label=label, extend="min")
    return figure


def draw_arrival(steps: np.ndarray, axes: Axes | None = None) -> Figure:
    """Draw after how many steps each location sees an input.

    Args:
        steps: From :func:`arrival_steps`, ``[*P]`` of one or two axes. 0 is never, and drawn grey.
        axes: Where to draw; ``None`` makes a figure.

    Returns:
        The figure.

    Raises:
        ValueError: ``steps`` is no such array.
    """
    owner = "draw_arrival"
    valid = isinstance(steps, np.ndarray) and steps.ndim in (1, 2) and steps.size > 0
    valid = valid and np.issubdtype(steps.dtype, np.integer) and bool((steps >= 0).all())
    require(valid, owner, "steps", "an array of steps in NumPy, of one or two axes,", steps)
    table = steps[None] if steps.ndim == 1 else steps
    rows, columns = table.shape
    last = max(2, int(table.max()))
    size = (max(3.6, 0.5 * columns + 1.8), max(1.6, 0.5 * rows + 1.2))
    figure, axes = canvas(owner, axes, size)
    axes.imshow(
        np.where(table > 0, table, np.nan),
        cmap=COLOUR_MAP,
        vmin=1,
        vmax=last,
        extent=(0.5, columns + 0.5, rows + 0.5, 0.5),
    )
    for (row, column), step in np.ndenumerate(table):
        colour = "white" if 0 < step < 0.6 * last else "black"
        axes.text(column + 1, row + 1, step or "–", ha="center", va="center", color=colour)
    axes.set_xticks(range(1, columns + 1))
    axes.set_yticks(range(1, rows + 1) if steps.ndim == 2 else [])
    axes.set_xlabel("location" if steps.ndim == 1 else "location on the second axis")
    axes.set_ylabel("" if steps.ndim == 1 else "location on the first axis")
    axes.set_title("steps until a location sees an input", fontsize="medium")
    return figure

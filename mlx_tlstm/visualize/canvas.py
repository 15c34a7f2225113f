"""What the drawings share: a figure without pyplot, colours, axes in steps and locations."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage

from mlx_tlstm.checks import require
from mlx_tlstm.files import to_path

#: Endings of the pictures that :func:`save_figure` writes.
FORMATS = ("png", "svg")
#: Labels of more characters stand below the axes.
_LONGEST_BESIDE = 24
#: From dark to light throughout, so that it reads in grey.
COLOUR_MAP = matplotlib.colormaps["viridis"].with_extremes(bad="0.85")
#: Up to as many steps each has its label; where there are more, round numbers are.
_STEPS_LABELLED = 12


class InlineFigure(Figure):
    """A figure that notebooks show as a picture, and that pyplot knows nothing of."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=120)
        return buffer.getvalue()


def canvas(owner: str, axes: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """The caller's axes with their figure, or new ones of ``size`` in inches.

    Raises:
        ValueError: ``axes`` is something else.
    """
    if axes is None:
        figure = InlineFigure(figsize=size, layout="constrained")
        return figure, figure.add_subplot()
    require(isinstance(axes, Axes), owner, "axes", "a matplotlib Axes or None", axes)
    figure = axes.figure
    while isinstance(figure, SubFigure):
        figure = figure.figure
    return figure, axes


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Write a figure as ``stem`` with ``.png`` and with ``.svg`` added, and return both paths.

    A ``stem`` that has one of these endings goes without it. Folders that are missing are made.

    Raises:
        ValueError: ``stem`` does not end in a name, or has the ending of another kind of picture.
        OSError: A file cannot be written.
    """
    stem = to_path("save_figure", "stem", stem)
    named = stem.name not in ("", "..")
    require(named, "save_figure", "stem", "a path that ends in a file's name", str(stem))
    ending = stem.suffix[1:].lower()
    expected = f"without ending, or with one of {', '.join(FORMATS)} (figure.savefig writes others)"
    other = ending not in FORMATS and ending in figure.canvas.get_supported_filetypes()
    require(not other, "save_figure", "stem", expected, str(stem))
    if ending in FORMATS:
        stem = stem.with_suffix("")
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in FORMATS]
    for path in paths:
        figure.savefig(path, dpi=200)
    return paths


#: Entries of a legend that fit under each other.
_LONGEST_COLUMN = 14


def legend_outside(
    axes: Axes, entries: tuple[list[Any], list[str]] | None = None, title: str | None = None
) -> None:
    """A legend beside the axes or, where a label is long, below them; it hides no line.

    Args:
        axes: Whose labelled lines are named.
        entries: Lines and labels in place of these.
        title: Stands above.
    """
    handles, labels = entries or axes.get_legend_handles_labels()
    beside = max(map(len, labels)) <= _LONGEST_BESIDE
    axes.legend(
        handles,
        labels,
        title=title,
        ncols=-(-len(labels) // _LONGEST_COLUMN),
        loc="upper left",
        bbox_to_anchor=(1.02, 1) if beside else (0, -0.16),
        borderaxespad=0,
        fontsize="small",
        title_fontsize="small",
        frameon=False,
        handlelength=3,
    )


def scaled(owner: str, values: np.ndarray) -> np.ndarray:
    """``values`` moved and stretched to [0, 1]; all 0 where they are all one number.

    Raises:
        ValueError: One is infinite or no number.
    """
    finite = np.isfinite(values)
    require(bool(finite.all()), owner, "recording", "of finite states", f"{(~finite).sum()} others")
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def over_steps(axes: Axes, values: np.ndarray, low: float, high: float) -> AxesImage:
    """A picture ``[locations, T']`` whose columns are steps from 1."""
    rows, steps = values.shape
    image = axes.imshow(
        values,
        cmap=COLOUR_MAP,
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, steps + 0.5, rows + 0.5, 0.5),
    )
    axes.set_xlabel("step")
    axes.set_xticks(step_ticks(steps))
    return image


def step_ticks(steps: int) -> list[int]:
    """Step 1 and round numbers of steps, or all where they are few."""
    spacing, factor = 1, 5
    while steps > _STEPS_LABELLED * spacing:
        spacing, factor = spacing * factor, 10 // factor
    return [1, *range(max(2, spacing), steps + 1, spacing)]


def location_names(indices: Sequence[np.ndarray]) -> list[str]:
    """Names of locations given by indices from 0, an array an axis; they count from 1."""
    return [",".join(str(index + 1) for index in place) for place in zip(*indices, strict=True)]

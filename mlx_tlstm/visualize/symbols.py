"""What a network reads, should answer and answers, step by step under a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from mlx_tlstm.checks import require

#: Points from one row of symbols to the next, and from the last one to what follows.
ROW_HEIGHT, _GAP = 11.0, 3.0
_LARGEST_FONT, _SMALLEST_FONT = 8.0, 4.0
#: The height of drawn inputs, in heights of the picture above them.
STRIP = 0.35


def check_symbols(owner: str, argument: str, symbols: object, length: int) -> None:
    """Raise ``ValueError`` unless ``symbols`` are ``length`` strings."""
    valid = isinstance(symbols, Sequence) and len(symbols) == length
    valid = valid and all(isinstance(symbol, str) for symbol in symbols)
    require(valid, owner, argument, f"{length} strings, one an input,", symbols)


def check_values(owner: str, argument: str, values: np.ndarray, length: int) -> None:
    """Raise ``ValueError`` unless ``values`` are numbers ``[T]`` or ``[T, R]``."""
    valid = values.ndim in (1, 2) and len(values) == length and values.size > 0
    valid = valid and values.dtype.kind in "biuf"
    require(valid, owner, argument, f"of shape [{length}] or [{length}, R], of numbers,", values)


def write_rows(
    axes: Axes, rows: dict[str, tuple[Sequence[str], int]], width: float, bold: dict[str, set[int]]
) -> None:
    """Write symbols under the columns of ``axes``, and move the ticks' labels below them.

    Args:
        axes: Its columns are steps from 1.
        rows: For each row's name its symbols and the step of the first.
        width: Width of a column in points.
        bold: For each row's name the symbols, from 0, that stand out.
    """
    style = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
    for number, (name, (symbols, first)) in enumerate(rows.items()):
        below = -_GAP - ROW_HEIGHT * (number + 0.5)
        written = [index for index, symbol in enumerate(symbols) if symbol]
        nearest = min((b - a for a, b in itertools.pairwise(written)), default=len(symbols))
        font = min(_LARGEST_FONT, max(_SMALLEST_FONT, 1.3 * width * nearest))
        axes.annotate(
            name, (0, 0), (-4, below), "axes fraction", ha="right", fontsize=_LARGEST_FONT, **style
        )
        for index in written:
            stands_out = index in bold.get(name, ())
            axes.annotate(
                symbols[index],
                (first + index, 0),
                (0, below),
                ("data", "axes fraction"),
                ha="center",
                family="monospace",
                fontsize=font,
                color="#b00020" if stands_out else "black",
                weight="bold" if stands_out else "normal",
                parse_math=False,
                **style,
            )
    axes.tick_params(axis="x", pad=_GAP + ROW_HEIGHT * len(rows) + _GAP, length=0)


def draw_strip(axes: Axes, values: np.ndarray, height: float) -> None:
    """Draw inputs ``[T, R]`` in grey, dark is high, under a picture, as ``height`` of its rows."""
    T = len(values)
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    first = bottom + height / 4
    axes.imshow(
        values.T,
        cmap="gray_r",
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, T + 0.5, first + height, first),
    )
    axes.set(xlim=(left, right), ylim=(first + height, top))
    ticks = [*axes.get_yticks(), first + height / 2]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    axes.set_yticks(ticks, [*labels, "input values"])
    for edge in (bottom, first):
        axes.axhline(edge, color="black", linewidth=0.8)

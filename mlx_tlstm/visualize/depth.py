"""Drawings over the depth: figures of runs, and run times, a line a variant."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from mlx_tlstm.checking.timing import Timing
from mlx_tlstm.checks import is_integer, is_number, plain, require, require_choice
from mlx_tlstm.layers.variants import VARIANTS
from mlx_tlstm.visualize.canvas import canvas, legend_outside
from mlx_tlstm.visualize.styles import variant_style

RUNTIME_LABEL = "ms per timestep per example"
#: How far lines with ranges stand from their depth at most, in parts of the depth axis.
_DODGE = 0.03
#: Room at both ends of the depth axis, likewise.
_MARGIN = 0.08
#: A run time that spans a larger factor is drawn on a logarithmic axis.
_LINEAR_FACTOR = 10


def draw_by_depth(
    points: Mapping[str, Mapping[int, Sequence[float]]],
    ylabel: str,
    axes: Axes | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw values over the depth, a line for each variant: medians, and the range over the seeds.

    With several seeds each line is moved a little to the side, so that ranges do not overlap.

    Args:
        points: For each variant and depth the values of its seeds. What is missing, or has no
            values, is a gap.
        ylabel: What the values are, with their unit.
        axes: Where to draw; ``None`` makes a figure.
        labels: Text for the legend in place of a variant's name, by variant; some may be missing.

    Returns:
        The figure.

    Raises:
        ValueError: There is no value, or something is no variant, no depth or no number.
    """
    owner = "draw_by_depth"
    _require_points(owner, points, Iterable, "sequences of numbers")
    points = {
        name: {depth: list(map(plain, seeds)) for depth, seeds in by_depth.items()}
        for name, by_depth in points.items()
    }
    seeds = [seeds for by_depth in points.values() for seeds in by_depth.values()]
    values = list(itertools.chain(*seeds))
    finite = all(map(is_number, values))
    require(bool(values) and finite, owner, "points", "finite numbers, one or more,", values)
    figure, axes = canvas(owner, axes, (5.6, 3.4))
    dodge = _DODGE if max(map(len, seeds)) > 1 else 0.0
    _draw_lines(
        owner, axes, points, statistics.median, lambda values: (min(values), max(values)), dodge
    )
    axes.set_ylabel(ylabel)
    handles, names = axes.get_legend_handles_labels()
    legend_outside(axes, (handles, [(labels or {}).get(name, name) for name in names]))
    return figure


def draw_runtime(points: Mapping[str, Mapping[int, Timing]], axes: Axes | None = None) -> Figure:
    """Draw run times over the depth, a line for each variant: medians and quartiles of the rounds.

    The legend has the time of the greatest depth divided by that of the smallest: 1 is a run time
    that does not depend on the depth. The axis is logarithmic where times span more than a factor
    of 10.

    Args:
        points: For each variant and depth the rounds, in milliseconds per timestep per example.
        axes: Where to draw; ``None`` makes a figure.

    Returns:
        The figure.

    Raises:
        ValueError: There is no time, something is no variant or no depth, or the depths have
            different numbers of rounds.
    """
    owner = "draw_runtime"
    _require_points(owner, points, Timing, "Timings")
    medians = [timing.median for by_depth in points.values() for timing in by_depth.values()]
    require(len(medians) > 0, owner, "points", "at least one time", points)
    figure, axes = canvas(owner, axes, (5.6, 3.4))
    _draw_lines(owner, axes, points, lambda timing: timing.median, lambda timing: timing.quartiles)
    axes.set_ylabel(RUNTIME_LABEL)
    if max(medians) > _LINEAR_FACTOR * min(medians):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    depths = {depth for by_depth in points.values() for depth in by_depth}
    first, last = min(depths), max(depths)
    handles, names = axes.get_legend_handles_labels()
    costs = [
        f"{name}  ×{by_depth[last].ratio(by_depth[first]):.1f}"
        if first in (by_depth := points[name]) and last in by_depth
        else name
        for name in names
    ]
    legend_outside(axes, (handles, costs), title=f"L={last} relative to L={first}")
    return figure


def _require_points(owner: str, points: Any, kind: type, values: str) -> None:
    """Raise ``ValueError`` unless ``points`` has a ``kind`` for each variant and depth."""
    expected = f"a mapping of variants to mappings of depths to {values}"
    valid = isinstance(points, Mapping) and all(
        isinstance(depths, Mapping) and all(isinstance(value, kind) for value in depths.values())
        for depths in points.values()
    )
    require(valid, owner, "points", expected, points)


def _draw_lines(
    owner: str,
    axes: Axes,
    points: Mapping[str, Mapping[int, Any]],
    middle: Callable[[Any], float],
    span: Callable[[Any], tuple[float, float]],
    dodge: float = 0.0,
) -> None:
    """A line with error bars for each variant, in :data:`VARIANTS`' order, over all depths.

    ``dodge`` is how far the outer lines are moved, in parts of the depth axis.
    """
    for name in points:
        require_choice(owner, "points", name, VARIANTS)
    depths = sorted({depth for by_depth in points.values() for depth in by_depth})
    valid = all(is_integer(depth) and depth > 0 for depth in depths)
    require(valid, owner, "points", "of depths of 1 or more", depths)
    width = depths[-1] - depths[0]
    names = [name for name in VARIANTS if any(map(_present, points.get(name, {}).values()))]
    centre_line = (len(names) - 1) / 2
    for number, name in enumerate(names):
        found = {depth: value for depth, value in points[name].items() if _present(value)}
        middles, below, above = [], [], []
        for depth in depths:
            value = found.get(depth)
            centre, low, high = (math.nan,) * 3
            if value is not None:
                centre, (low, high) = middle(value), span(value)
            middles.append(centre)
            below.append(centre - low)
            above.append(high - centre)
        aside = dodge * width * (number - centre_line) / max(1, centre_line)
        axes.errorbar(
            [depth + aside for depth in depths],
            middles,
            yerr=(below, above),
            label=name,
            **variant_style(name),
            linewidth=1.4,
            elinewidth=1,
            capsize=3,
        )
    axes.set_xlabel("depth L")
    axes.set_xticks(depths)
    margin = _MARGIN * (width or 1)  # matplotlib's own forgets depths that have gaps only
    axes.set_xlim(depths[0] - margin, depths[-1] + margin)
    axes.grid(alpha=0.3)


def _present(value: Any) -> bool:
    return isinstance(value, Timing) or len(value) > 0

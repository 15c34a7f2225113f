"""Drawing of saturated gates."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlx_tlstm.checks import require_choice
from mlx_tlstm.visualize.canvas import COLOUR_MAP, canvas, location_names
from mlx_tlstm.visualize.measures import gate_saturation
from mlx_tlstm.visualize.recording import Recording, diagonal, require_part

#: Up to as many locations the numbers stand in the picture.
_NUMBERED = 12
LOCATIONS = ("diagonal", "all")


def draw_gate_saturation(
    recording: Recording,
    locations: str = "diagonal",
    low: float = 0.1,
    high: float = 0.9,
    axes: Axes | None = None,
) -> Figure:
    """Draw how often each gate is nearly shut (below ``low``) or nearly open (above ``high``).

    Args:
        recording: From :func:`record`; shares are taken over all its sequences, steps, channels.
        locations: ``"diagonal"``, or ``"all"`` in row-major order.
        low: Below it a gate counts as shut.
        high: Above it a gate counts as open.
        axes: Where to draw; ``None`` makes a figure.

    Returns:
        The figure.

    Raises:
        ValueError: The layer has no gates, or an argument is out of range.
    """
    owner = "draw_gate_saturation"
    require_part(owner, recording, "forget_gate")
    require_choice(owner, "locations", locations, LOCATIONS)
    size = recording.tensor_size
    places = diagonal(size)
    if locations == "all":
        places = tuple(index.ravel() for index in np.indices(size))
    shares = gate_saturation(recording, low, high)
    rows, names = [], []
    for gate, share in shares.items():
        rows += [share.shut[places], share.open[places]]
        names += [f"{gate} < {low:g}", f"{gate} > {high:g}"]
    percent = 100 * np.stack(rows)
    count = percent.shape[1]
    figure, axes = canvas(owner, axes, (min(12.0, max(4.5, 0.5 * count + 2.8)), 3.0))
    image = axes.imshow(
        percent, cmap=COLOUR_MAP, vmin=0, vmax=100, aspect="auto", interpolation="nearest"
    )
    axes.set_yticks(range(len(names)), names)
    ticks = range(0, count, -(-count // _NUMBERED))
    labels = location_names(places)
    axes.set_xticks(ticks, [labels[tick] for tick in ticks])
    axes.set_xlabel(f"{recording.place} (input left, output right)")
    axes.set_title("saturated gates", fontsize="medium")
    for border in (1.5, 3.5):
        axes.axhline(border, color="white", linewidth=2)
    if count <= _NUMBERED:
        for (row, column), value in np.ndenumerate(percent):
            colour = "black" if value > 60 else "white"
            axes.text(
                column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour
            )
    figure.colorbar(image, ax=axes, label="share of values (%)", pad=0.01)
    return figure

"""One colour, line style and marker for each variant, the same in every drawing.

Cells of a user's own share one look.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from matplotlib.colors import to_rgb

#: A line style of matplotlib: a name, or an offset and lengths of dashes and gaps.
LineStyle = str | tuple[int, tuple[float, ...]]


class VariantStyle(NamedTuple):
    """How the lines of a variant look."""

    colour: str
    line: LineStyle
    marker: str


#: No two have a marker in common, so that they are told apart in grey.
STYLES = {
    "slstm": VariantStyle("#000000", ":", "s"),
    "2d-tlstm": VariantStyle("#0072b2", "-", "o"),
    "2d-tlstm-m": VariantStyle("#56b4e9", "--", "v"),
    "2d-tlstm-f": VariantStyle("#009e73", "-.", "^"),
    "3d-tlstm": VariantStyle("#d55e00", "-", "D"),
    "3d-tlstm+ln": VariantStyle("#e69f00", "--", "P"),
    "3d-tlstm+cn": VariantStyle("#8b0a50", "-", "*"),
    "2d-trnn": VariantStyle("#cc79a7", ":", "X"),
    "3d-trnn": VariantStyle("#8c564b", "-.", ">"),
    "2d-tlstm+cn": VariantStyle("#332288", "-", "p"),
    "2d-tlstm+ln": VariantStyle("#999933", "--", "<"),
    "stacked-lstm": VariantStyle("#7f7f7f", "-", "d"),
    "grid-lstm": VariantStyle("#117733", "--", "h"),
    "lstm": VariantStyle("#b0b0b0", "-.", "8"),
    "irnn": VariantStyle("#ff7f9e", ":", "x"),
    "dilated-gru": VariantStyle("#6a51a3", "-.", "H"),
    "mlstm": VariantStyle("#a6761d", "--", "+"),
    "rhn": VariantStyle("#00b4b4", ":", "1"),
}
#: A cell of the user's own.
_OTHER = VariantStyle("#c00000", "-", "|")
#: Line styles of one variant's lines after the first.
_LINES: tuple[LineStyle, ...] = ("--", ":", "-.", (0, (6, 1)), (0, (1, 4)), "-")
#: The lightest of one variant's lines is so far on its way to white.
_LIGHTEST = 0.5


def variant_style(name: str, number: int = 0, count: int = 1) -> dict[str, Any]:
    """The look of a variant's line, as keywords of ``Axes.plot``.

    Args:
        name: Name of a variant in :data:`mlx_tlstm.VARIANTS`; any other stands for a user's own.
        number: Which of the variant's lines, from 0, where a drawing has several: the later ones
            are lighter and dashed in other ways.
        count: How many lines the variant has in the drawing.

    Returns:
        ``color``, ``linestyle`` and ``marker``.
    """
    style = STYLES.get(name, _OTHER)
    lines = [style.line, *(line for line in _LINES if line != style.line)]
    towards_white = _LIGHTEST * number / max(1, count - 1)
    colour = tuple(part + (1 - part) * towards_white for part in to_rgb(style.colour))
    line = lines[number % len(lines)]
    return {"color": colour, "linestyle": line, "marker": style.marker}

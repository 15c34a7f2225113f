"""Tables of figures, as plain text or Markdown."""

from __future__ import annotations

import dataclasses

from mlx_tlstm.checking.timing import Timing


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under a title; ``timings`` holds every measurement behind them."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    timings: dict[str, dict[str, Timing]]

    def text(self, markdown: bool) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        between, edge = (" | ", "| ") if markdown else ("  ", "")

        def line(cells: tuple[str, ...]) -> str:
            first, *rest = (
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            return edge + between.join([first, *rest]) + edge[::-1]

        rule = tuple("-" * (w - 1) + (":" if i else "-") for i, w in enumerate(widths))
        title = f"### {self.title}\n" if markdown else self.title
        body = [line(self.header), *([line(rule)] if markdown else []), *map(line, self.rows)]
        return "\n".join([title, *body])

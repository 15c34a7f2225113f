"""Count the parameters of every configuration that the paper names, beside the paper's figures.

The paper seems to count in units of 2^20; both units are printed.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import Any

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
from benchmarking.report import Table
from mlx.utils import tree_flatten

from mlx_tlstm import VARIANTS, SequenceModel, make_layer
from mlx_tlstm.tasks import TASKS

#: The paper's configurations (a) to (g), in its order.
PAPER_VARIANTS = (
    "slstm",
    "2d-tlstm",
    "2d-tlstm-m",
    "2d-tlstm-f",
    "3d-tlstm",
    "3d-tlstm+ln",
    "3d-tlstm+cn",
)
#: Distinct bytes of enwik8, which is not downloaded for their number.
ENWIK8_SYMBOLS = 205
MILLION, MEBI = 10**6, 2**20


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Configurations of one of the paper's figures or tables.

    Args:
        task: Names of the tasks; those that share a row have equal sizes.
        source: Where the paper has it.
        symbols: R and S, width of an input and number of classes.
        depths: L.
        hidden_sizes: M of each variant.
        printed: The parameter count as the paper prints it; empty where it prints none.
    """

    task: str
    source: str
    symbols: tuple[int, int]
    depths: tuple[int, ...]
    hidden_sizes: dict[str, int]
    printed: str = ""


def _fixed(hidden_size: int) -> dict[str, int]:
    return dict.fromkeys(PAPER_VARIANTS, hidden_size)


def _generated(task: str) -> tuple[int, int]:
    symbols = len(TASKS[task].alphabet)
    return symbols, symbols


_WIKIPEDIA_SIZES = {name: 522 if VARIANTS[name].axes == 2 else 901 for name in PAPER_VARIANTS}
_WIKIPEDIA_SIZES |= {"slstm": 1120, "2d-tlstm-f": 1120}
_WIKIPEDIA = (ENWIK8_SYMBOLS, ENWIK8_SYMBOLS)

EXPERIMENTS = (
    Experiment("wikipedia", "Fig. 3", _WIKIPEDIA, (1, 2, 3, 4), _WIKIPEDIA_SIZES, "10M"),
    Experiment("wikipedia", "Table 1", _WIKIPEDIA, (6,), {"3d-tlstm+cn": 1200}, "50.1M"),
    Experiment("addition", "Fig. 4", _generated("addition"), (1, 4, 7, 10), _fixed(400)),
    Experiment("memorization", "Fig. 4", _generated("memorization"), (1, 4, 7, 10), _fixed(100)),
    Experiment("mnist, pmnist", "Fig. 5", (1, TASKS["mnist"].output_size), (1, 3, 5), _fixed(100)),
)


@dataclasses.dataclass(frozen=True)
class Count:
    """Trained numbers of one configuration, at depths that have equally many."""

    task: str
    source: str
    variant: str
    depths: tuple[int, ...]
    hidden_size: int
    parameters: int
    printed: str


def parameter_count(variant: str, symbols: tuple[int, int], hidden_size: int, depth: int) -> int:
    """Trained numbers of a model with its read-out; MLX never fills the arrays."""
    inputs, classes = symbols
    model = SequenceModel(make_layer(variant, inputs, hidden_size, depth), classes)
    return sum(array.size for _, array in tree_flatten(model.trainable_parameters()))


def counts() -> list[Count]:
    """Every configuration of :data:`EXPERIMENTS`."""
    found = []
    for experiment in EXPERIMENTS:
        for variant, hidden_size in experiment.hidden_sizes.items():
            depths_of: dict[int, list[int]] = {}
            for depth in experiment.depths:
                number = parameter_count(variant, experiment.symbols, hidden_size, depth)
                depths_of.setdefault(number, []).append(depth)
            found += [
                Count(
                    experiment.task,
                    experiment.source,
                    variant,
                    tuple(depths),
                    hidden_size,
                    number,
                    experiment.printed,
                )
                for number, depths in depths_of.items()
            ]
    return found


def table(found: list[Count]) -> Table:
    """The counts for people."""
    rows = [
        (
            f"{count.task} ({count.source})",
            count.variant,
            ", ".join(map(str, count.depths)),
            str(count.hidden_size),
            f"{count.parameters:,}",
            f"{count.parameters / MILLION:.2f}",
            f"{count.parameters / MEBI:.2f}",
            count.printed,
        )
        for count in found
    ]
    header = ("task", "variant", "L", "M", "parameters", "10^6", "2^20", "paper")
    return Table("Parameters of the paper's configurations", header, rows, {})


def records(found: list[Count]) -> list[dict[str, Any]]:
    """The counts for programs."""
    return [
        dataclasses.asdict(count)
        | {"in_10^6": count.parameters / MILLION, "in_2^20": count.parameters / MEBI}
        for count in found
    ]


def render(found: list[Count], style: str) -> str:
    """The counts as ``"text"``, ``"markdown"``, ``"csv"`` or ``"json"``."""
    if style == "json":
        return json.dumps(records(found), indent=2)
    if style == "csv":
        lines = records(found)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(line | {"depths": " ".join(map(str, line["depths"]))} for line in lines)
        return buffer.getvalue().rstrip("\n")
    return table(found).text(style == "markdown")


@click.command(help=__doc__)
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "markdown", "csv", "json"]),
    default="text",
    show_default=True,
)
@click.option("--task", type=click.Choice(list(TASKS)), help="Only this task's configurations.")
def main(style: str, task: str | None) -> None:
    found = [count for count in counts() if task is None or task in count.task.split(", ")]
    click.echo(render(found, style))


if __name__ == "__main__":
    main()

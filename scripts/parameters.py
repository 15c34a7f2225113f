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
from experiments.paper import EXPERIMENTS
from mlx.utils import tree_flatten

from mlx_tlstm import SequenceModel, make_layer
from mlx_tlstm.commands.base import Command
from mlx_tlstm.tasks import TASKS

MILLION, MEBI = 10**6, 2**20


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
        symbols = (experiment.input_size, experiment.output_size)
        for variant, hidden_size in experiment.hidden_sizes.items():
            depths_of: dict[int, list[int]] = {}
            for depth in experiment.depths:
                number = parameter_count(variant, symbols, hidden_size, depth)
                depths_of.setdefault(number, []).append(depth)
            found += [
                Count(
                    ", ".join(experiment.tasks),
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


@click.command(cls=Command, help=__doc__)
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

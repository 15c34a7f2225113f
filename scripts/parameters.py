"""Count the parameters of every configuration that the paper names, beside the paper's figures.

Of others' networks (mlx_tlstm.rivals) the sizes are those of the tables' rows in their own papers.

The paper seems to count in units of 2^20; both units are printed.
"""

from __future__ import annotations

import json
from typing import Any

import click
from benchmarking.tables import Table, csv_text
from experiments.paper import PAPER_TASKS, printed_networks
from experiments.widths import parameter_count

from mlx_tlstm.commands.base import Command

MILLION, MEBI = 10**6, 2**20


def counts() -> list[dict[str, Any]]:
    """Every configuration of the paper and its tables; depths with equally many together."""
    found = []
    for experiment in printed_networks():
        symbols = (experiment.input_size, experiment.output_size)
        for variant, hidden_size in experiment.hidden_sizes.items():
            depths_of: dict[int, list[int]] = {}
            for depth in experiment.depths:
                number = parameter_count(variant, symbols, hidden_size, depth)
                depths_of.setdefault(number, []).append(depth)
            found += [
                {
                    "task": ", ".join(experiment.tasks),
                    "source": experiment.source,
                    "variant": variant,
                    "depths": depths,
                    "hidden_size": hidden_size,
                    "parameters": number,
                    "printed": experiment.printed,
                    "in_10^6": number / MILLION,
                    "in_2^20": number / MEBI,
                }
                for number, depths in depths_of.items()
            ]
    return found


def render(found: list[dict[str, Any]], style: str) -> str:
    """The counts as ``"text"``, ``"markdown"``, ``"csv"`` or ``"json"``."""
    if style == "json":
        return json.dumps(found, indent=2)
    if style == "csv":
        rows = [one | {"depths": " ".join(map(str, one["depths"]))} for one in found]
        return csv_text(rows).rstrip("\n")
    rows = [
        {
            "task": f"{one['task']} ({one['source']})",
            "variant": one["variant"],
            "L": ", ".join(map(str, one["depths"])),
            "M": str(one["hidden_size"]),
            "parameters": f"{one['parameters']:,}",
            "10^6": f"{one['in_10^6']:.2f}",
            "2^20": f"{one['in_2^20']:.2f}",
            "paper": one["printed"],
        }
        for one in found
    ]
    return Table("Parameters of the paper's configurations", rows).text(style == "markdown")


@click.command(cls=Command, help=__doc__)
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "markdown", "csv", "json"]),
    default="text",
    show_default=True,
    help="How to print the table.",
)
@click.option("--task", type=click.Choice(PAPER_TASKS), help="Only this task's configurations.")
def main(style: str, task: str | None) -> None:
    found = [count for count in counts() if task is None or task in count["task"].split(", ")]
    click.echo(render(found, style))


if __name__ == "__main__":
    main()

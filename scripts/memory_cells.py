"""Draw the memory cell of a trained network over the steps of a test example, as Fig. 6 does.

MODEL is the folder of a training run, a saved model's, or a repository of the Hugging Face hub.
"""

from __future__ import annotations

from pathlib import Path

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
import mlx.core as mx
import numpy as np
from experiments.examples import characters, example_of
from matplotlib.figure import Figure

from mlx_tlstm import SequenceModel
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.loading import load_model, model_options
from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.files import to_path
from mlx_tlstm.tasks import Task
from mlx_tlstm.training import encode
from mlx_tlstm.training.origin import task_of
from mlx_tlstm.visualize import draw_diagonal, draw_memory_maps, record, save_figure


def draw(model: SequenceModel, task: Task, number: int, location: str) -> tuple[Figure, list[str]]:
    """The figure of a test example, and its inputs (none for images), targets and predictions."""
    inputs, targets = example_of(task, number)
    x = encode(inputs[None], task.input_size, model.layer.dtype)
    recording = record(model.layer, x)
    logits = model.readout(mx.array(recording.outputs, x.dtype))
    answers = np.array(mx.argmax(logits[0], axis=-1))
    counted = range(len(targets))[task.loss_positions]
    answered = [
        [c if position in counted else "" for position, c in enumerate(characters(task, row))]
        for row in (targets, answers)
    ]
    read = characters(task, inputs) if inputs.ndim == 1 else inputs
    if location == "all":
        figure = draw_memory_maps(recording)
    else:
        figure = draw_diagonal(recording, 0, read, *answered)
    return figure, ["".join(row) for row in (read if inputs.ndim == 1 else [], *answered)]


@click.command(cls=Command, help=__doc__)
@model_options
@click.option(
    "--example",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Number of the example in the test split.",
)
@click.option(
    "--location",
    type=click.Choice(["diagonal", "all"]),
    default="diagonal",
    show_default=True,
    help="The diagonal over all steps (Fig. 6), or maps of all locations at some steps.",
)
@click.option(
    "--data",
    type=UserPath(),
    help="Where the task's data is, if not where it was in training.",
)
@click.option(
    "--out",
    type=UserPath(),
    help="The pictures' path without ending; else memory-cells-LOCATION-EXAMPLE in MODEL's folder.",
)
def main(
    model: str,
    weights: str,
    backend: str | None,
    example: int,
    location: str,
    data: Path | None,
    out: Path | None,
) -> None:
    with clean_errors(bad_input=True):
        network = load_model(model, weights, backend)
        task = task_of(network, data)
        figure, (inputs, targets, predictions) = draw(network, task, example, location)
    config = task.config
    figure.suptitle(
        f"{config.task} {config.length}, {config.variant}, L={config.depth}, "
        f"M={config.hidden_size}: test example {example}",
        fontsize="medium",
    )
    name = f"memory-cells-{location}-{example}"
    folder = to_path("memory_cells", "model", model)
    stem = out or (folder / name if folder.is_dir() else Path(name))
    with clean_errors(bad_input=True):
        paths = save_figure(figure, stem)
    for path in paths:
        click.echo(path)
    for name, text in (("input", inputs), ("target", targets), ("output", predictions)):
        if text:
            click.echo(f"{name:7}{text}")


if __name__ == "__main__":
    main()

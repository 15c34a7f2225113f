"""``mlx-tlstm evaluate``: the metrics of a trained model."""

from __future__ import annotations

import os
from pathlib import Path

import click
from mlx.utils import tree_flatten

from mlx_tlstm import training
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.loading import load_model, model_options
from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.files import json_text
from mlx_tlstm.models.trained import is_run
from mlx_tlstm.training.origin import task_of
from mlx_tlstm.training.progress import causality_note


@click.command(cls=Command)
@click.option(
    "--split",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Part of the data to evaluate on.",
)
@click.option(
    "--data",
    type=UserPath(),
    help="Where the task's data is now, if it has moved since training.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Sequences to compute side by side; the figures do not depend on it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@model_options
def evaluate(
    model: str,
    split: str,
    weights: str,
    data: Path | None,
    batch_size: int | None,
    as_json: bool,
    backend: str | None,
) -> None:
    """Print every metric of a trained model on its task.

    MODEL is the folder of a training run or of a saved model, or a repository of the Hugging Face
    hub.
    """
    with clean_errors(bad_input=True):
        network = load_model(model, weights, backend)
        task = task_of(network, data)
    kept = weights if is_run(model) else None
    metrics = training.evaluate(network, task, split, all_metrics=True, batch_size=batch_size)
    config = task.config
    # A saved model knows no folder of its data: whose text this is has to be seen. A task of the
    # user's own may mean something else by it than a path.
    is_path = config.data is not None and os.path.exists(config.data)
    source = os.path.abspath(config.data) if is_path else config.data
    note = causality_note(task, network)
    if note:
        click.echo(note, err=True)
    if not as_json:
        counted = f"{metrics['answers']:,} answers"
        whose = kept and f"{kept} weights"
        data_of = source and f"data {source}"
        remarks = (config.task, config.variant, counted, whose, task.evaluation_note, data_of)
        click.echo(
            f"{split}: {training.format_metrics(metrics)}, loss {metrics['loss']:.4f} "
            f"({', '.join(filter(None, remarks))})"
        )
        return
    parameters = sum(array.size for _, array in tree_flatten(network.parameters()))
    record = {
        "task": config.task,
        "variant": config.variant,
        "parameters": parameters,
        "weights": kept,
        "split": split,
        "data": source,
        "metrics": metrics,
        "note": task.evaluation_note or None,
        "causal": network.causal,
    }
    click.echo(json_text(record), nl=False)

"""``mlx-tlstm evaluate``: the metrics of a training run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
from mlx.utils import tree_flatten

from mlx_tlstm import training
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.runs import WEIGHTS
from mlx_tlstm.training.progress import causality_note


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["test", "validation"]), default="test")
@click.option("--weights", type=click.Choice(WEIGHTS), default=WEIGHTS[0])
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Sequences side by side, which changes no figure; else the task's own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all as one JSON object.")
def evaluate(run: Path, split: str, weights: str, batch_size: int | None, as_json: bool) -> None:
    """Print every metric of the saved RUN, the folder of a training run."""
    with clean_errors(bad_input=True):
        folder, task, model = training.load_run(run, weights)
    with clean_errors(bad_input=False):
        metrics = training.evaluate_all(model, task, split, batch_size)
    config = folder.config
    note = causality_note(config, task)
    if note:
        click.echo(note, err=True)
    if not as_json:
        counted = f"{metrics['answers']:,} answers"
        remarks = (config.task, config.variant, counted, f"{weights} weights", task.evaluation_note)
        click.echo(
            f"{split}: {training.format_metrics(metrics)}, loss {metrics['loss']:.4f} "
            f"({', '.join(filter(None, remarks))})"
        )
        return
    parameters = sum(array.size for _, array in tree_flatten(model.parameters()))
    record = {
        "task": config.task,
        "variant": config.variant,
        "parameters": parameters,
        "weights": weights,
        "split": split,
        # JSON has no word for what is not finite.
        "metrics": {k: v if math.isfinite(v) else None for k, v in metrics.items()},
        "note": task.evaluation_note or None,
        "causal": model.causal,
    }
    click.echo(json.dumps(record))

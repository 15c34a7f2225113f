"""``mlx-tlstm data``: a task's data, made ready and described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.paths import OutputFile
from mlx_tlstm.commands.settings import setting_options
from mlx_tlstm.files import replace_file
from mlx_tlstm.tasks import TASKS, Batch, Mnist, Task, make_task
from mlx_tlstm.tasks.pictures import draw_images, require_picture_format

#: Sequences that are shown.
SAMPLES = 3


def describe(task: Task) -> list[str]:
    """Describe a task's data, a line each: sizes, symbols, shapes of a batch, a few samples."""
    sizes = [
        f"{name} {'generated at each step' if size is None else f'{size:,}'}"
        for name, size in task.split_sizes().items()
    ]
    batch = task.train_batch(0)
    kind = f"of {task.input_size} symbols" if batch.inputs.ndim == 2 else "from 0 to 1"
    losses, answers = (
        batch.targets[0, positions].size
        for positions in (task.loss_positions, task.answer_positions)
    )
    facts = {
        "task": task.name,
        "data": task.config.data
        or ("generated" if task.samples_per_epoch is None else "downloaded"),
        task.unit: ", ".join(sizes),
        **task.facts(),
        "inputs": f"{_shape(batch.inputs)} {kind}",
        "targets": f"{_shape(batch.targets)} of {task.output_size} classes; "
        f"{losses} of {task.steps} steps are trained on, {answers} count",
        "guessing": f"the best constant answer has {100 * best_constant(task):.2f} % of the test "
        "split right (chosen by a look at it)",
    }
    lines = [f"{name}: {text}" for name, text in facts.items()]
    test = next(iter(task.eval_batches("test")))
    for row in range(min(SAMPLES, len(test.targets))):
        lines += ["", *task.sample_lines(test, row)]
    return lines


def best_constant(task: Task) -> float:
    """The share of the test split's answers that one answer, whatever the input, has right at best.

    Where whole sequences are answers, each of their positions has its own most frequent symbol.
    """
    answers = [batch.targets[:, task.answer_positions] for batch in task.eval_batches("test")]
    if task.reports_sequences and len({array.shape[1] for array in answers}) == 1:
        columns = list(np.concatenate(answers).T)
    else:
        columns = [np.concatenate([array.ravel() for array in answers])]
    return sum(int(np.bincount(c).max()) for c in columns) / sum(map(len, columns))


def _shape(array: Any) -> str:
    return " × ".join(map(str, array.shape))


@click.command(cls=Command)
@click.argument("task", type=click.Choice(list(TASKS)))
@setting_options("data", "length", "batch_size")
@click.option(
    "--picture",
    type=OutputFile(),
    metavar="FILE",
    help="Draw a few test digits of mnist or pmnist into this .png, .pdf or .svg file.",
)
def data(
    task: str,
    data: Path | None,
    length: int | None,
    batch_size: int | None,
    picture: Path | None,
) -> None:
    """Download what is missing of TASK's data, and describe the data."""
    given = {
        "data": None if data is None else str(data),
        "length": length,
        "batch_size": batch_size,
    }
    with clean_errors(bad_input=True):
        if picture is not None:
            if not issubclass(TASKS[task], Mnist):
                raise click.UsageError(f"--picture draws mnist and pmnist, not {task}")
            require_picture_format(picture)
        changes = {name: value for name, value in given.items() if value is not None}
        made = make_task(TASKS[task].quick().replace(**changes))
        lines = describe(made)
    for line in lines:
        click.echo(line)
    if picture is not None:
        test: Batch = next(iter(made.eval_batches("test")))
        replace_file(picture, lambda path: draw_images(made, test, path))
        click.echo(f"\npicture: {picture}")

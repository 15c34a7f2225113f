"""``mlx-tlstm train``: train a network, or go on with a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mlx_tlstm import training
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.devices import backend_option, chosen, device_option
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.config import BY_LAG, ON_DIVERGENCE, TrainingConfig
from mlx_tlstm.layers.base import DTYPES
from mlx_tlstm.layers.tlstm import MEMORY_INITS
from mlx_tlstm.layers.variants import VARIANTS
from mlx_tlstm.tasks import TASKS


class NumberOrLag(click.ParamType):
    """A number, or the word ``lag``, with which the task decides."""

    name = f"float|{BY_LAG}"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float | str:
        try:
            return value if value == BY_LAG else float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number or {BY_LAG!r}", parameter, context)


@click.command(
    cls=Command,
    keeps_results=True,
    help=f"Train a network on TASK and save the run in a folder. TASK is one of "
    f"{', '.join(TASKS)}; by default the first.",
    epilog="Options left out have the task's settings for a laptop or, with --paper, the paper's.",
)
@click.argument("task", type=click.Choice(list(TASKS)), default=next(iter(TASKS)), metavar="[TASK]")
@click.option(
    "--variant",
    type=click.Choice(list(VARIANTS)),
    metavar="NAME",
    help=f"Network configuration: {', '.join(VARIANTS)}.",
)
@click.option(
    "--depth",
    type=int,
    help="L, the number of time steps that an input takes to reach the output; for slstm the "
    "number of layers.",
)
@click.option(
    "--hidden-size", type=int, help="M, the number of channels at each location of the tensor."
)
@click.option(
    "--kernel-size",
    type=int,
    help="K, the kernel's size on every tensor axis, 2 or more; by default the variant's.",
)
@click.option(
    "--memory-init",
    type=click.Choice(MEMORY_INITS),
    help="What the untrained memory convolution does: spread memory evenly over its "
    "taps (uniform), move it towards the output (shift) or keep it in place (hold).",
)
@click.option("--batch-size", type=int, help="Sequences in a training step.")
@click.option(
    "--accumulate",
    type=int,
    help="Compute each batch in so many parts, one after the other: the same step in less memory.",
)
@click.option(
    "--length",
    type=int,
    help="Size of the task: digits to add, symbols to memorize, characters in a training step, or "
    "time steps in which an image is read.",
)
@click.option("--learning-rate", type=float, help="Adam's step size.")
@click.option(
    "--samples",
    type=int,
    help="Training sequences in all; where --epochs is given too, the fewer of the two.",
)
@click.option(
    "--epochs", type=int, help="Passes over the training set of wikipedia, mnist or pmnist."
)
@click.option(
    "--seed", type=int, help="Seed of the starting weights, the generated data and its order."
)
@click.option(
    "--forget-bias",
    type=NumberOrLag(),
    help=f"Starting bias of the forget gate. With '{BY_LAG}', half of a memory is left after "
    "the number of time steps for which memorization or addition needs it.",
)
@click.option(
    "--weight-scale",
    type=float,
    help="Factor on the starting weights of the recurrence, those between two time steps.",
)
@click.option(
    "--beta2", type=float, help="Adam's decay rate of the running mean of squared gradients."
)
@click.option("--clip-norm", type=float, help="Largest gradient norm; 0 turns this clipping off.")
@click.option(
    "--clip-value",
    type=float,
    help="Largest size of an element of the gradient; 0 turns this clipping off.",
)
@click.option(
    "--on-divergence",
    type=click.Choice(ON_DIVERGENCE),
    help="What to do when a loss or gradient is not finite: stop, or go back to the last good "
    "checkpoint and halve the learning rate.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Type of the weights; Adam updates float32 copies of them.",
)
@click.option(
    "--recompute",
    is_flag=True,
    default=None,
    help="Compute the gates' activations again in the backward pass instead of keeping them: less "
    "memory, more time.",
)
@click.option("--eval-every", type=int, help="Training sequences between two evaluations.")
@click.option("--checkpoint-every", type=int, help="Training steps between two checkpoints.")
@click.option(
    "--checkpoint-seconds",
    type=float,
    help="Seconds between two checkpoints; 0 leaves it to --checkpoint-every.",
)
@click.option("--keep-checkpoints", type=int, help="How many of the newest checkpoints to keep.")
@click.option(
    "--data",
    type=UserPath(),
    help="Your own data: for wikipedia a text file, which may be packed as zip, tar, gz, bz2 or "
    "xz; for mnist and pmnist a folder of IDX or parquet files. By default the data is downloaded.",
)
@click.option(
    "--out",
    type=UserPath(),
    help="Folder for the run, which must hold no run yet; by default runs/TASK-VARIANT-TIME.",
)
@click.option("--paper", is_flag=True, help="Start from the paper's settings.")
@click.option(
    "--resume",
    type=UserPath(),
    metavar="RUN",
    help="Go on with a run that was stopped or killed, with the settings that it has. Add "
    "--data if its data has moved.",
)
@click.option(
    "--track",
    type=click.Choice(list(training.TRACKERS)),
    help="Send each evaluation to this tracker too; pip installs it as an extra of the same name.",
)
@device_option
@backend_option
@click.pass_context
def train(
    context: click.Context,
    task: str,
    data: Path | None,
    out: Path | None,
    paper: bool,
    resume: Path | None,
    track: str | None,
    backend: str | None,
    **options: Any,
) -> None:
    given = {name: value for name, value in options.items() if value is not None}
    if data is not None:
        given["data"] = str(data.absolute())  # the run can then be evaluated from any folder
    if resume is not None:
        _require_alone(context)
    workers = training.Workers.launched()
    if not workers.first:
        with clean_errors(bad_input=True):
            training.follow(workers, backend)
        return
    with clean_errors(bad_input=True):
        if resume is None:
            config = (TASKS[task].paper() if paper else TASKS[task].quick()).replace(**given)
        if track is not None:
            training.require_tracker(track)  # before there is a folder
        if resume is not None:
            trainer, run = training.reopen(resume, workers, backend, data)
        else:
            trainer, run = training.prepare(config, out, workers, backend)
        trackers = [] if track is None else [training.make_tracker(track, run.path)]
    with clean_errors(bad_input=False, go_on=chosen(context)):
        result = training.train(trainer, run, [training.Progress(), *trackers])
    for name, record in (("best", result.best), ("final", result.last)):
        click.echo(
            f"{name}: {training.format_metrics(record)} ({record['split']}, after "
            f"{record['samples']:,} samples)"
        )
    remarks = ", ".join(filter(None, ("best weights", trainer.task.evaluation_note)))
    click.echo(f"test: {training.format_metrics(result.test)} ({remarks})")
    end = "solved" if result.solved else "done"
    click.echo(f"{end} in {result.seconds:,.1f} s; run: {result.folder}")


def _require_alone(context: click.Context) -> None:
    """Refuse ``--resume`` together with settings, since a resumed run keeps its own."""
    settings = {field.name for field in dataclasses.fields(TrainingConfig)} | {"out", "paper"}
    settings.remove("data")  # which may have moved
    given = [
        parameter.opts[0] if isinstance(parameter, click.Option) else context.params["task"]
        for parameter in context.command.params
        if parameter.name in settings
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(
            f"--resume goes on with the run's own settings and cannot take {', '.join(given)}"
        )

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
from mlx_tlstm.commands.settings import laptop_settings, setting_options
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks import TASKS


@click.command(
    cls=Command,
    keeps_results=True,
    help=f"Train a network on TASK and save the run in a folder. TASK is one of "
    f"{', '.join(TASKS)}; by default {next(iter(TASKS))}.",
    epilog="Other options left out have the task's settings for a laptop or, with --paper, those "
    f"for the paper's size. For a laptop they are:\n\n{laptop_settings()}",
)
@click.argument("task", type=click.Choice(list(TASKS)), default=next(iter(TASKS)), metavar="[TASK]")
@setting_options()
@click.option(
    "--out",
    type=UserPath(),
    help="Folder for the run, which must hold no run yet; by default runs/TASK-VARIANT-TIME.",
)
@click.option("--paper", is_flag=True, help="Take settings for the paper's size.")
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
    help="Send each evaluation to this tracker too, whose own package has to be installed.",
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
        given["data"] = str(data)
    if resume is not None:
        _require_alone(context)
    with clean_errors(bad_input=True):
        workers = training.Workers.launched()
    if not workers.first:
        with clean_errors(bad_input=True):
            trainer = training.join(workers, backend)
        training.follow(trainer)
        return
    with clean_errors(bad_input=True):
        if resume is None:
            config = TASKS[task].paper() if paper else TASKS[task].quick()
            config = config.for_variant(given.get("variant", config.variant)).replace(**given)
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
    click.echo(f"{end} in {result.seconds:,.1f} s; run: {run.path}")


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

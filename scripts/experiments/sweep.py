"""Training runs one after the other, each once, however often and by how many processes."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from filelock import FileLock, Timeout
from tqdm import tqdm

from experiments.planned import PlannedRun, backend_of, check_runs, unsettled
from experiments.results import RunResult, read_result, record_origin
from mlx_tlstm import training
from mlx_tlstm.checking.timing import machine
from mlx_tlstm.training.reports import StepReport
from mlx_tlstm.training.runs import CONFIG_FILE, RunInUseError
from mlx_tlstm.training.signals import STOP_WORDS, Handled, StopRequested, stop_signals

#: A file a run, locked by the process that has taken it.
CLAIMS = ".claims"


def sweep(
    runs: Sequence[PlannedRun], folder: Path, command: str, backend: str | None = None
) -> bool:
    """Train the runs that have not ended, in order, each into a folder of its name.

    A run that was stopped goes on. One that ended is kept, and so is one whose loss or gradient was
    not finite: it would end the same way again. Processes that are given the same runs share them:
    each takes those that no other has, and comes back for one whose process was killed.

    Args:
        runs: What to train; equal ones count once.
        folder: Where to; made if need be.
        command: What a user types to go on.
        backend: How layers compute, as of :class:`mlx_tlstm.TLSTM`; stacked LSTMs as ever.

    Returns:
        Whether nothing is left to do; else other processes are at work on the rest.

    Raises:
        ValueError: See :func:`check_runs`; or a run's settings do not fit its task or the machine.
        FileNotFoundError, DataUnavailableError: The data of a run cannot be had.
        TrainingInterrupted: Ctrl-C, SIGTERM or SIGHUP came; no run has lost more than the work
            since its last checkpoint.
        OSError: A file cannot be written.
    """
    check_runs(runs, folder)
    runs = list(dict.fromkeys(runs))
    left = unsettled(runs, folder)
    ended = f", {len(runs) - len(left)} of which ended before" if len(left) < len(runs) else ""
    click.echo(f"{len(runs)} run{'' if len(runs) == 1 else 's'}{ended}")
    width = max((len(run.name) for run in runs), default=0)
    here = dataclasses.asdict(machine())
    try:
        # Between two runs they end the sweep as Ctrl-C does.
        with Handled(_stop, [number for number in stop_signals() if number != signal.SIGINT]):
            while left:
                elsewhere = []
                for run in left:
                    label = f"{runs.index(run) + 1:>{len(str(len(runs)))}} of {len(runs)}"
                    result = _train(run, folder, here, label, backend)
                    if result is None:
                        elsewhere.append(run)
                    else:
                        click.echo(f"{label}  {run.name:<{width}}  {outcome(result)}")
                if len(elsewhere) == len(left):
                    break
                left = elsewhere  # a process that had one may have been killed meanwhile
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal_number", signal.SIGINT)
        done = len(runs) - len(unsettled(runs, folder))
        raise training.TrainingInterrupted(
            f"{STOP_WORDS[number]} with {done} of {len(runs)} runs ended; "
            f"what was trained is saved; to go on: {command}",
            number,
        ) from None
    return not left


def outcome(result: RunResult) -> str:
    """A run in a line: its best metric, its samples and its time in training."""
    best = "no evaluation"
    if result.best is not None:
        best = f"{training.format_metrics({result.metric: result.best})} ({result.split})"
    samples = f"{result.samples:,} samples"
    parts = [best, samples, tqdm.format_interval(result.seconds)]
    return ", ".join(([] if result.state == "ended" else [result.state]) + parts)


def _train(
    run: PlannedRun, folder: Path, here: Mapping[str, Any], label: str, backend: str | None
) -> RunResult | None:
    """Train a run to its end; ``None`` where another process has it."""
    path, claims = folder / run.name, folder / CLAIMS
    claims.mkdir(parents=True, exist_ok=True)
    try:
        claim = FileLock(claims / run.name).acquire(blocking=False)  # a killed process has none
    except Timeout:
        return None
    with claim:
        if unsettled([run], folder):
            started = (path / CONFIG_FILE).is_file()
            try:
                backend = backend_of(run.config, backend)
                trainer, files = (
                    training.reopen(
                        path, backend=backend, data=run.config.data
                    )  # which may have moved
                    if started
                    else training.prepare(run.config, path, backend=backend)
                )
                training.train(trainer, files, [_Observer(path, here, f"{label}  {run.name}")])
            except training.NonFiniteError:
                pass  # the run's events.jsonl has it
            except RunInUseError:
                return None
        return read_result(path)


def _stop(signal_number: int, frame: object) -> None:
    raise StopRequested(signal_number)


class _Observer(training.Callback):
    """Records where a run is trained; shows a bar on a terminal while it is."""

    def __init__(self, path: Path, here: Mapping[str, Any], label: str) -> None:
        self._path, self._here, self._label = path, here, label
        self._bar: tqdm | None = None

    def on_start(self, trainer: training.Trainer) -> None:
        record_origin(self._path, self._here, trainer.task.evaluation_note)
        self._bar = tqdm(
            total=trainer.total_steps * trainer.config.batch_size,
            initial=trainer.samples,
            desc=self._label,
            unit=" samples",
            leave=False,
            disable=None,
        )

    def on_step(self, trainer: training.Trainer, report: StepReport) -> None:
        self._bar.update(trainer.samples - self._bar.n)

    def on_note(self, text: str) -> None:
        tqdm.write(f"{self._label}: {text}", file=sys.stderr)

    def on_end(self) -> None:
        if self._bar is not None:
            self._bar.close()

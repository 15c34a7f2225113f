"""The training loop: steps, evaluations, the best weights, and a clean end."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx_tlstm.cache import larger_cpu_cache
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.model import SequenceModel
from mlx_tlstm.runs import RunFolder, check_unused
from mlx_tlstm.training.evaluation import evaluate
from mlx_tlstm.training.trainer import StepReport, Trainer

#: One evaluation's figures by name.
Record = dict[str, Any]


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, after the step was finished and the weights were saved."""


class Callback:
    """What may be told about a run; trackers override what they need."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step; nothing has been written yet but ``config.json``."""

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """After each step."""

    def on_evaluation(self, record: Record) -> None:
        """After each evaluation, with the record that ``metrics.jsonl`` got."""

    def on_end(self) -> None:
        """Once at the end, however training ended."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        folder: Where its files are.
        model: The model with its best weights.
        best: The record with the best value of the task's metric, the first of equals.
        last: The last record.
        test: Metrics of the best weights on the test split, as in ``test.json``.
        solved: Whether the metric reached the task's ``solved_at``.
        seconds: How long it took, the test included.
    """

    folder: Path
    model: SequenceModel
    best: Record
    last: Record
    test: Record
    solved: bool
    seconds: float


def fit(config: TrainingConfig, out: str | Path, callbacks: Sequence[Callback] = ()) -> Result:
    """Train a configuration into a new run folder: :func:`prepare`, then :func:`train`."""
    return train(*prepare(config, out), callbacks)


def prepare(config: TrainingConfig, out: str | Path) -> tuple[Trainer, RunFolder]:
    """Check everything, load the data, build the model and create the run folder.

    Raises:
        ValueError: ``out`` holds a run already or is unusable, or a setting is wrong.
        FileNotFoundError: ``config.data`` does not exist.
        DataUnavailableError: The data can neither be downloaded nor found in the cache.
        OSError: The folder cannot be written.
    """
    check_unused(out)
    trainer = Trainer(config)
    return trainer, RunFolder.create(out, config)


def train(trainer: Trainer, run: RunFolder, callbacks: Sequence[Callback] = ()) -> Result:
    """Train to the end, evaluating every ``config.eval_every`` samples and at the end.

    Each evaluation appends a record to ``metrics.jsonl``: ``samples`` and ``step`` so far;
    ``loss``, ``gradient_norm``: means over the training steps since the last record; ``split``;
    ``evaluation_loss`` and ``accuracy`` or ``bpc``, and ``sequence_accuracy`` where the task
    reports it, on that split; ``seconds`` since the start. It writes ``last.safetensors`` and,
    where the metric is better than ever, ``best.safetensors``.

    Training stops early when the metric reaches the task's ``solved_at``. At the end the best
    weights' metrics on the test split go to ``test.json``.

    Raises:
        TrainingInterrupted: Ctrl-C came; the weights are in ``last.safetensors``.
        NonFiniteError: A loss or gradient is not finite; the files stay as they were after the
            last evaluation.
        OSError: A file cannot be written.
    """
    start = time.perf_counter()
    try:
        with larger_cpu_cache(), _deferred_interrupt() as check_interrupt:
            for callback in callbacks:
                callback.on_start(trainer)
            best, last, solved = _run_steps(trainer, run, callbacks, start, check_interrupt)
            test = _test(trainer, run, best, check_interrupt)
    except _InterruptRequested:
        raise TrainingInterrupted(
            f"Interrupted after {trainer.samples:,} samples; the weights are saved in "
            f"{run.path / 'last.safetensors'}"
        ) from None
    finally:
        for callback in callbacks:
            callback.on_end()
    seconds = time.perf_counter() - start
    return Result(run.path, trainer.model, best, last, test, solved, seconds)


def _run_steps(
    trainer: Trainer,
    run: RunFolder,
    callbacks: Sequence[Callback],
    start: float,
    check_interrupt: Callable[[], None],
) -> tuple[Record, Record, bool]:
    """The steps and evaluations: the best record, the last one, and whether it solves the task."""
    config, task = trainer.config, trainer.task
    best = record = None
    reports: list[StepReport] = []
    solved = False
    try:
        while trainer.step < trainer.total_steps and not solved:
            check_interrupt()
            reports.append(trainer.train_step())
            for callback in callbacks:
                callback.on_step(trainer, reports[-1])
            due = trainer.samples % config.eval_every < config.batch_size
            if not due and trainer.step < trainer.total_steps:
                continue
            record = _record(trainer, reports, start, check_interrupt)
            reports = []
            run.append_metrics(record)
            run.save_weights(trainer.model, "last")
            if best is None or better(task.metric, record[task.metric], best[task.metric]):
                best = record
                run.save_weights(trainer.model, "best")
            solved = task.solved_at is not None and not better(
                task.metric, task.solved_at, record[task.metric]
            )
            for callback in callbacks:
                callback.on_evaluation(record)
    except _InterruptRequested:
        run.save_weights(trainer.model, "last")
        raise
    return best, record, solved


def _record(
    trainer: Trainer,
    reports: Sequence[StepReport],
    start: float,
    check_interrupt: Callable[[], None],
) -> Record:
    """A line of ``metrics.jsonl`` from a fresh evaluation and the steps since the last one."""
    split = trainer.task.monitor
    metrics = evaluate(trainer.model, trainer.task, split, on_batch=check_interrupt)
    evaluation_loss = metrics.pop("loss")
    trainer.require_finite("evaluation loss", evaluation_loss)
    losses, norms = zip(*reports, strict=True)
    return {
        "samples": trainer.samples,
        "step": trainer.step,
        "loss": sum(losses) / len(losses),
        "gradient_norm": sum(norms) / len(norms),
        "split": split,
        "evaluation_loss": evaluation_loss,
        **metrics,
        "seconds": round(time.perf_counter() - start, 3),
    }


def _test(
    trainer: Trainer, run: RunFolder, best: Record, check_interrupt: Callable[[], None]
) -> Record:
    """Put the best weights into the model, and their test metrics into ``test.json``."""
    run.load_weights(trainer.model, "best")
    metrics = evaluate(trainer.model, trainer.task, "test", on_batch=check_interrupt)
    test = {"weights": "best", "samples": best["samples"], **metrics}
    run.save_test_metrics(test)
    return test


def better(metric: str, value: float, other: float) -> bool:
    """Whether a value of a metric beats another: more accuracy, fewer bits per character."""
    return value < other if metric == "bpc" else value > other


class _InterruptRequested(KeyboardInterrupt):
    """Raised between steps, where the trainer's state is whole."""


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the function that is yielded is called, which then raises.

    A second Ctrl-C is not held back. Outside the main thread Python delivers no signals, and
    nothing changes.
    """
    requested = False

    def handle(signal_number: int, frame: object) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    def check() -> None:
        if requested:
            raise _InterruptRequested

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        # None: the handler before was not set from Python.
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)

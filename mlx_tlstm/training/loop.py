"""The training loop: steps, evaluations, checkpoints, and a clean end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlx.core as mx

from mlx_tlstm.checks import require
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.files import to_path
from mlx_tlstm.models.sequence import SequenceModel, keep_origin
from mlx_tlstm.models.trained import load_trained
from mlx_tlstm.recurrence.snapshot import replace_weights
from mlx_tlstm.tasks import BUILT_IN, remembered_data, task_type
from mlx_tlstm.training.callbacks import Callback
from mlx_tlstm.training.checkpoints import damage_refused
from mlx_tlstm.training.disk import RunOnDisk
from mlx_tlstm.training.divergence import NonFiniteError
from mlx_tlstm.training.evaluation import evaluate
from mlx_tlstm.training.origin import known_to_commands
from mlx_tlstm.training.reports import EvaluationReport
from mlx_tlstm.training.runs import TEST_FILE, RunFolder, check_unused
from mlx_tlstm.training.signals import STOP_WORDS, StopRequested, deferred_stop
from mlx_tlstm.training.trainer import Trainer
from mlx_tlstm.training.workers import WorkerLostError, Workers

#: Bytes of freed memory that MLX may keep for reuse on a CPU. Its own limit is 32 MB, less than a
#: training step uses; asking the system again takes a tenth of a step's time or more.
CPU_CACHE_BYTES = 1 << 30


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP, after the step was finished and a checkpoint was written.

    Attributes:
        signal_number: The signal that came.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)  # both, to be copied and pickled
        self.signal_number = signal_number

    def __str__(self) -> str:
        return self.args[0]


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        folder: Where its files are, an absolute path.
        model: The model with its best weights, in evaluation mode.
        best: The record with the best value of the task's metric; of several, the first.
        last: The last record.
        test: Metrics of the best weights on the test split, as in ``test.json``.
        solved: Whether the metric reached the task's ``solved_at``.
        seconds: How long it took in all, with the test and, for a resumed run, what came before.
    """

    folder: Path
    model: SequenceModel
    best: EvaluationReport
    last: EvaluationReport
    test: EvaluationReport
    solved: bool
    seconds: float


def _require_callbacks(callbacks: object) -> None:
    expected = "a list of callbacks (instances of mlx_tlstm.training.Callback)"
    fits = isinstance(callbacks, Sequence) and all(isinstance(c, Callback) for c in callbacks)
    require(fits, "train", "callbacks", expected, callbacks)


def fit(
    config: TrainingConfig,
    out: str | Path,
    callbacks: Sequence[Callback] = (),
    backend: str | None = None,
) -> Result:
    """Train a configuration into a new run folder: :func:`prepare`, then :func:`train`.

    It runs on MLX's default device; ``backend`` is the layer's, as of :class:`mlx_tlstm.TLSTM`. A
    run keeps neither. ``mx.random`` is seeded with the configuration's seed.
    """
    _require_callbacks(callbacks)  # before there is a folder
    return train(*prepare(config, out, backend=backend), callbacks)


def resume(
    path: str | Path,
    callbacks: Sequence[Callback] = (),
    backend: str | None = None,
    data: str | Path | None = None,
) -> Result:
    """Go on with a run that was stopped or killed: :func:`reopen`, then :func:`train`.

    The result is that of a run that was never stopped, bit for bit but for the recorded times; on
    another device or ``backend``, up to rounding.

    Args:
        path: The run's folder.
        callbacks: See :func:`train`.
        backend: See :func:`fit`.
        data: Where the data is now, if it has moved; the run's ``config.json`` then says so too.
    """
    return train(*reopen(path, backend=backend, data=data), callbacks)


def prepare(
    config: TrainingConfig,
    out: str | Path | None,
    workers: Workers | None = None,
    backend: str | None = None,
) -> tuple[Trainer, RunFolder]:
    """Check everything, load the data, build the model and create the run folder.

    Where ``out`` is ``None`` it is ``runs/TASK-VARIANT-TIME``, with a number added where another
    run has that. With several workers the first calls it, and the others :func:`join`; so with
    :func:`reopen`.

    Raises:
        ValueError: ``out`` holds a run already or is unusable, a setting is wrong, or ``backend``
            cannot run the layer here.
        FileNotFoundError: ``config.data`` does not exist.
        DataUnavailableError: The data can neither be downloaded nor found in the cache.
        RunInUseError: Another process is at work in the folder.
        OSError: The folder cannot be written.
    """
    require(isinstance(config, TrainingConfig), "prepare", "config", "a TrainingConfig", config)
    check_unused(out)
    config = _with_whole_path(config)
    trainer = _leading_trainer(config, workers, backend)
    return trainer, RunFolder.create(out, config)


def reopen(
    path: str | Path,
    workers: Workers | None = None,
    backend: str | None = None,
    data: str | Path | None = None,
) -> tuple[Trainer, RunFolder]:
    """Check that a run can go on, load its data and build its model, untrained as yet.

    Args:
        path: The run's folder.
        workers: See :func:`prepare`.
        data: Where the data is now, if it has moved. :func:`train` compares it with what the
            checkpoint expects, and then writes its place to ``config.json``.

    Raises:
        ValueError: The folder holds no run, or one that has ended.
        FileNotFoundError: The data that the run was trained on is gone.
        DataUnavailableError: The data cannot be downloaded.
        RunInUseError: Another process trains in the folder.
    """
    run = RunFolder.open(path)
    with run.lock():  # refused before the data is loaded
        _require_unfinished(run)
    if data is not None:
        config = _with_whole_path(run.config.replace(data=data))
        run = dataclasses.replace(run, config=config)
    with remembered_data(data):
        return _leading_trainer(run.config, workers, backend), run


def _with_whole_path(config: TrainingConfig) -> TrainingConfig:
    """With an absolute path of the data, so that the run can be evaluated from any folder.

    A task of the user's own may mean something else by ``data``.
    """
    if config.data is None or task_type(config.task) is not BUILT_IN.get(config.task):
        return config
    path = to_path("TrainingConfig", "data", config.data)
    return config.replace(data=str(path.absolute()))


def _leading_trainer(
    config: TrainingConfig, workers: Workers | None, backend: str | None
) -> Trainer:
    workers = workers or Workers()
    workers.text_from_first(json.dumps(dataclasses.asdict(config)))
    return Trainer(config, workers, backend)


def join(workers: Workers, backend: str | None = None) -> Trainer:
    """Load the data and build the model of the first of ``workers``, to :func:`follow` it.

    Raises:
        ValueError, FileNotFoundError, DataUnavailableError: As :func:`prepare`.
        WorkerLostError: Another process is gone.
    """
    config = TrainingConfig(**json.loads(workers.text_from_first("")))
    return Trainer(config, workers, backend)


def follow(trainer: Trainer) -> None:
    """Train with the first process, which decides and writes, until it ends.

    A signal to stop is passed on to it.

    Raises:
        WorkerLostError: Another process is gone.
    """
    stop = False
    with larger_cpu_cache(), deferred_stop() as check_stop:
        while True:
            try:
                check_stop()
            except StopRequested:
                stop = True
            operation = trainer.workers.awaited(stop)
            if operation == "end":
                return
            # Not finite here is not finite in the first process, which knows what to do.
            with contextlib.suppress(NonFiniteError):
                trainer.follow(operation)


def _require_unfinished(run: RunFolder) -> None:
    expected = f"a run that has not ended ({TEST_FILE} is there)"
    require(not run.ended, "RunFolder", "run", expected, str(run.path))


def train(trainer: Trainer, run: RunFolder, callbacks: Sequence[Callback] = ()) -> Result:
    """Train to the end, evaluating every ``config.eval_every`` samples and at the end.

    Where the folder holds checkpoints, training goes on from the newest that is whole; a damaged
    one is noted and the one before it used.

    Each evaluation appends a record to ``metrics.jsonl``: ``samples`` and ``step`` so far;
    ``loss``, ``gradient_norm``: means over the training steps since the last record, and
    ``clip_rate``, the share of them whose gradient was clipped; ``split``; ``evaluation_loss`` and
    ``accuracy`` or ``bpc``, and ``sequence_accuracy`` where the task reports it, on that split;
    ``seconds`` of training so far. It saves the model as ``last`` and, where the metric is better
    than ever, as ``best``.

    A divergence appends a record to ``events.jsonl``: ``event``, ``"stop"`` or ``"rollback"``; the
    ``step`` and training ``batch`` (from 0; none in an evaluation), the ``quantity`` that is not
    finite and its ``value``; for a rollback ``restored_step`` and the new ``learning_rate``.

    Training stops early when the metric reaches the task's ``solved_at``. At the end the best
    weights' metrics on the test split go to them and to ``test.json``.

    Raises:
        TrainingInterrupted: Ctrl-C, SIGTERM or SIGHUP came; a checkpoint and the ``last`` model
            hold what was learned. A second signal ends the run at once.
        NonFiniteError: A loss or gradient is not finite and ``config.on_divergence`` says stop, or
            going back did not help; no file but ``events.jsonl`` has it.
        CheckpointError: No checkpoint of the run can be used, or the data is not the run's.
        RunInUseError: Another process trains in the folder.
        ValueError: The run has ended, or ``callbacks`` are none.
        OSError: A file cannot be written; the checkpoints are as they were.
    """
    _require_callbacks(callbacks)
    named, run = run, dataclasses.replace(run, path=run.path.absolute())  # callbacks may chdir

    def note(text: str) -> None:
        for callback in callbacks:
            callback.on_note(text)

    with (
        _leading(trainer.workers),
        run.lock(),
        larger_cpu_cache(),
        deferred_stop(lambda: trainer.workers.stop_asked) as check_stop,
    ):
        _require_unfinished(run)
        try:
            session = RunOnDisk(trainer, run, note)
            _remember_data(run)
            for callback in callbacks:
                callback.on_start(trainer)
            trainer.require_untouched()
            try:
                test = _to_the_end(session, callbacks, check_stop)
            except StopRequested as stop:
                session.save_last()
                session.save()
                number = stop.signal_number
                raise TrainingInterrupted(
                    f"{STOP_WORDS[number]} after {trainer.samples:,} samples, which are saved; "
                    f"to go on: {_go_on(named)}",
                    number,
                ) from None
        finally:
            with contextlib.ExitStack() as ends:  # each has its end, whatever another's raises
                for callback in reversed(callbacks):
                    ends.callback(callback.on_end)
    return Result(
        folder=run.path,
        model=trainer.model,
        best=session.best,
        last=session.records[-1],
        test=test,
        solved=session.solved,
        seconds=session.seconds,
    )


def _go_on(run: RunFolder) -> str:
    if known_to_commands(run.config):
        return f"python -m mlx_tlstm.train --resume {shlex.quote(str(run.path))}"
    return f"mlx_tlstm.training.resume({str(run.path)!r})"


def _remember_data(run: RunFolder) -> None:
    """Write the place of data that has moved to ``config.json``."""
    stored = RunFolder.open(run.path)
    if stored.config.data != run.config.data:
        moved = stored.config.replace(data=run.config.data)
        dataclasses.replace(stored, config=moved).save_config()


def _to_the_end(
    session: RunOnDisk, callbacks: Sequence[Callback], check_stop: Callable[[], None]
) -> EvaluationReport:
    """The remaining training, then the test."""
    try:
        _run_steps(session, callbacks, check_stop)
        return _test(session, check_stop)
    except OSError:
        check_stop()  # a terminal that is closed sends SIGHUP, and takes no more words
        raise


def _run_steps(
    session: RunOnDisk, callbacks: Sequence[Callback], check_stop: Callable[[], None]
) -> None:
    """The steps, evaluations and checkpoints up to the end."""
    # Ours leave the weights alone, and to compare them takes a hundredth of a step.
    foreign = any(not type(callback).__module__.startswith("mlx_tlstm.") for callback in callbacks)
    while not session.finished:
        check_stop()
        try:
            if session.evaluation_due:
                record = session.evaluate(check_stop)
                for callback in callbacks:
                    callback.on_evaluation(dict(record))  # which it may change
            else:
                report = session.step()
                for callback in callbacks:
                    callback.on_step(session.trainer, report)
            if foreign:
                session.trainer.require_untouched()
        except NonFiniteError as error:
            session.recover(error)
        if session.checkpoint_due:
            session.save()


@contextlib.contextmanager
def larger_cpu_cache() -> Iterator[None]:
    """Let MLX keep more freed buffers on the CPU; on a GPU its limit is high enough."""
    if mx.default_device().type != mx.cpu:
        yield
        return
    previous = mx.set_cache_limit(CPU_CACHE_BYTES)
    mx.set_cache_limit(max(previous, CPU_CACHE_BYTES))  # a Mac has one limit, of GPU and CPU
    try:
        yield
    finally:
        mx.set_cache_limit(previous)


@contextlib.contextmanager
def _leading(workers: Workers) -> Iterator[None]:
    """Tell the other workers to end when training ends, also after an error."""
    try:
        yield
    finally:
        with contextlib.suppress(WorkerLostError):
            workers.announce("end")


def _test(session: RunOnDisk, check_stop: Callable[[], None]) -> EvaluationReport:
    """Put the best weights into the model; they and ``test.json`` get their test metrics."""
    model, run = session.trainer.model, session.run
    with damage_refused():
        best = load_trained(run.path, run.config, "best")
    replace_weights(model, best.parameters())
    metrics = evaluate(model, session.trainer.task, "test", on_batch=check_stop)
    metrics = {"samples": session.best["samples"], **metrics}
    figures = {"split": "test", **metrics}
    keep_origin(model, dataclasses.replace(model.metadata, metrics=figures))
    model.eval()
    run.save_model("best", model, model.metadata.metrics)
    test = {"weights": "best", **metrics}
    run.save_test_metrics(test)
    return test

"""A run in progress: what it knows between steps, and its way to the disk and back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_tlstm.files import json_text, replace_file
from mlx_tlstm.models.arrays import load_arrays, save_arrays
from mlx_tlstm.models.folder import CONFIG_FILE, WEIGHTS_FILE, read_config
from mlx_tlstm.models.trained import FILES_OF_0_1, WEIGHTS
from mlx_tlstm.tasks import Batch
from mlx_tlstm.training.checkpoints import Checkpoint, CheckpointError, CheckpointStore
from mlx_tlstm.training.evaluation import evaluate
from mlx_tlstm.training.reports import EvaluationReport, StepReport, StepTotals, better
from mlx_tlstm.training.runs import CHECKPOINTS, EVENTS_FILE, METRICS_FILE, RunFolder
from mlx_tlstm.training.trainer import NonFiniteError, Trainer

STATE_FILE = "state.json"
#: What a checkpoint copies from the run folder, and puts back: names here, and there.
RUN_FILES = {name: name for name in (METRICS_FILE, EVENTS_FILE)} | {
    f"{name}.safetensors": f"{name}/{WEIGHTS_FILE}" for name in WEIGHTS
}
#: A rollback multiplies the learning rate by it.
ROLLBACK_FACTOR = 0.5
#: Rollbacks in one run; the divergence after them stops it.
MAX_ROLLBACKS = 5


class RunOnDisk:
    """A run between two steps, in its folder, which the caller has locked.

    Opening it goes on from the newest whole checkpoint, and puts the run's files back to that
    moment. A new run gets its first checkpoint, so that there always is one.

    Args:
        trainer: The trainer, as new where the run has checkpoints.
        run: The run's folder.
        note: Takes a line for the user.

    Attributes:
        records: The records of ``metrics.jsonl``.

    Raises:
        CheckpointError: There are checkpoints and all are damaged, or records and no checkpoint,
            or the newest does not fit the configuration or the data.
        OSError: A file cannot be read or written.
    """

    def __init__(self, trainer: Trainer, run: RunFolder, note: Callable[[str], None]) -> None:
        self.trainer, self.run = trainer, run
        self.records: list[EvaluationReport] = []
        self._note = note
        self._totals = StepTotals()
        self._rollbacks = 0
        self._started = self._saved_at = time.perf_counter()
        self._saved_step = -1
        self._store = CheckpointStore(run.path / CHECKPOINTS, trainer.config.keep_checkpoints)
        known = run.path / WEIGHTS[0] / CONFIG_FILE
        if known.exists() and read_config(known).metadata.symbols != trainer.task.symbols:
            raise self._other_data(f"its symbols are not those of {known}")
        self._store.remove_leftovers()
        checkpoint, damaged = self._store.newest()
        if checkpoint is not None:
            state = self._restore(checkpoint)
            self._started -= state["seconds"]
            self._rollbacks = state["rollbacks"]
            for damage in damaged:
                note(f"{damage}; going back to {checkpoint.path.name}")
                self._store.remove(damage.checkpoint)
            note(f"Going on after {trainer.samples:,} samples")
            return
        if damaged:
            reasons = "; ".join(map(str, damaged))
            raise CheckpointError(f"[RunOnDisk] no checkpoint is whole: {reasons}")
        present = [name for name in RUN_FILES.values() if (run.path / name).exists()]
        if present:
            raise CheckpointError(
                f"[RunOnDisk] 'run' must hold checkpoints but {str(run.path)!r} holds "
                f"{', '.join(present)} and none"
            )
        run.describe_model(trainer.model)
        self.save()

    @property
    def seconds(self) -> float:
        """Time in training so far, without the time between a stop and its resumption."""
        return time.perf_counter() - self._started

    @property
    def best(self) -> EvaluationReport:
        """The record with the best metric, the first of equals."""
        metric = self.trainer.task.metric
        return (min if metric == "bpc" else max)(self.records, key=lambda record: record[metric])

    @property
    def solved(self) -> bool:
        """Whether the last record's metric reached the task's ``solved_at``."""
        task = self.trainer.task
        if not self.records or task.solved_at is None:
            return False
        return not better(task.metric, task.solved_at, self.records[-1][task.metric])

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation comes before the next step."""
        trainer, config = self.trainer, self.trainer.config
        due = trainer.samples % config.eval_every < config.batch_size
        return self._totals.steps > 0 and (due or trainer.step >= trainer.total_steps)

    @property
    def finished(self) -> bool:
        """Whether neither a step nor an evaluation is left."""
        ended = self.solved or self.trainer.step >= self.trainer.total_steps
        return ended and not self.evaluation_due

    @property
    def checkpoint_due(self) -> bool:
        """Whether it is time for a checkpoint; it waits for an evaluation that is due."""
        config, step = self.trainer.config, self.trainer.step
        if step == self._saved_step or self.evaluation_due:
            return False
        waited = time.perf_counter() - self._saved_at
        by_step = config.checkpoint_every is not None and step % config.checkpoint_every == 0
        return by_step or 0 < config.checkpoint_seconds <= waited

    def step(self) -> StepReport:
        """One training step.

        Raises:
            NonFiniteError: See :meth:`Trainer.train_step`.
        """
        report = self.trainer.train_step()
        self._totals.add(report)
        return report

    def evaluate(self, check_stop: Callable[[], None]) -> EvaluationReport:
        """Evaluate, append the record, and save the weights as the last and perhaps the best.

        Raises:
            NonFiniteError: The loss is not finite; nothing was written.
        """
        trainer, run, metric = self.trainer, self.run, self.trainer.task.metric
        split = trainer.task.monitor
        metrics = evaluate(trainer.model, trainer.task, split, on_batch=check_stop)
        figures = {"split": split, "samples": trainer.samples, **metrics}
        evaluation_loss = metrics.pop("loss")
        trainer.require_finite("evaluation loss", evaluation_loss)
        record = {
            "samples": trainer.samples,
            "step": trainer.step,
            **self._totals.means(),
            "split": split,
            "evaluation_loss": evaluation_loss,
            **metrics,
            "seconds": round(self.seconds, 3),
        }
        run.append_metrics(record)
        run.save_model("last", trainer.model, figures)
        if not self.records or better(metric, record[metric], self.best[metric]):
            run.save_model("best", trainer.model, figures)
        self.records.append(record)
        self._totals = StepTotals()
        return record

    def save_last(self) -> None:
        """Save the weights as the last ones, unless an evaluation has just done so."""
        if self._totals.steps:
            self.run.save_model("last", self.trainer.model, {"samples": self.trainer.samples})

    def save(self) -> None:
        """Write a checkpoint; none of weights that are not finite, as the next step will say."""
        trainer, run = self.trainer, self.run
        if not trainer.finite:
            return
        next_batch = trainer.task.train_batch(trainer.step)
        state = {
            "step": trainer.step,
            "seconds": self.seconds,
            "rollbacks": self._rollbacks,
            "totals": dataclasses.asdict(self._totals),
            "random_key": mx.random.state[0].tolist(),
            "next_batch": _fingerprint(next_batch),
        }
        text = json_text(state, indent=2)
        files: dict[str, Callable[[Path], object]] = {
            STATE_FILE: lambda path: path.write_text(text)
        }
        for name, arrays in trainer.arrays().items():
            if name == "carried" and next_batch.fresh:
                continue  # no step will read it
            files[f"{name}.safetensors"] = partial(save_arrays, arrays=arrays)
        for name, source in RUN_FILES.items():
            if (run.path / source).exists():
                files[name] = partial(shutil.copyfile, run.path / source)
        self._store.write(trainer.step, files)
        self._saved_step, self._saved_at = trainer.step, time.perf_counter()

    def recover(self, error: NonFiniteError) -> None:
        """After a divergence: write it to ``events.jsonl``, then roll back or raise it again.

        A checkpoint is of use where an update lies between it and the divergence, since only
        updates know the learning rate. Back there, a new checkpoint takes its place.
        """
        trainer, run = self.trainer, self.run
        event = {
            "event": "stop",
            "step": error.step,
            "batch": error.batch,
            "quantity": error.quantity,
            "value": str(error.value),  # JSON knows no nan
        }
        checkpoint = None
        if trainer.config.on_divergence == "rollback" and self._rollbacks < MAX_ROLLBACKS:
            checkpoint, damaged = self._store.newest(before=error.updates)
            for damage in damaged:
                self._note(str(damage))
        if checkpoint is None:
            run.append_event(event)
            raise error
        rate, events = trainer.learning_rate * ROLLBACK_FACTOR, run.read_events()
        self._restore(checkpoint)
        trainer.optimizer.learning_rate = rate
        self._rollbacks += 1
        event |= {"event": "rollback", "restored_step": trainer.step, "learning_rate": rate}
        lines = "".join(json_text(row) for row in (*events, event))
        replace_file(run.path / EVENTS_FILE, lambda path: path.write_text(lines))
        self.save()
        self._note(
            f"The {error.quantity} is {error.value} at step {error.step}; back to step "
            f"{trainer.step} with learning rate {rate:g}"
        )

    def _other_data(self, how: str) -> CheckpointError:
        place = self.trainer.config.data
        found = "" if place is None else f" in {place!r}"
        return CheckpointError(
            f"[RunOnDisk] the data must be what the run was trained on but that{found} is not: "
            f"{how}"
        )

    def _restore(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Put trainer and files back to a whole checkpoint's moment; the state it holds."""
        trainer, run, path, names = self.trainer, self.run, checkpoint.path, checkpoint.files()
        try:
            state = json.loads((path / STATE_FILE).read_text())
            arrays = {
                name: load_arrays(path / f"{name}.safetensors", "RunOnDisk")
                for name in ("weights", "optimizer", "carried")
                if f"{name}.safetensors" in names
            }
            batch = trainer.task.train_batch(state["step"])
            same_data = state["next_batch"] == _fingerprint(batch)
            if same_data:  # else other shapes may be in the way
                trainer.restore(state["step"], arrays)
            self._totals = StepTotals(**state["totals"])
            first, second = state["random_key"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"[RunOnDisk] checkpoint {path} cannot be used: {error}"
            ) from error
        if not same_data:
            raise self._other_data(
                f"batch {state['step']} differs from the one that checkpoint {path} expects"
            )
        mx.random.seed((first << 32) | second)
        of_0_1 = not (run.path / WEIGHTS[0] / CONFIG_FILE).exists()
        run.describe_model(trainer.model)
        for name, target in RUN_FILES.items():
            if name in names:
                replace_file(run.path / target, partial(shutil.copyfile, path / name))
            else:
                (run.path / target).unlink(missing_ok=True)
        for name in FILES_OF_0_1 if of_0_1 else ():
            (run.path / name).unlink(missing_ok=True)
        self.records = run.read_metrics()
        self._saved_step, self._saved_at = trainer.step, time.perf_counter()
        return state


def _fingerprint(batch: Batch) -> str:
    digest = hashlib.sha256(batch.inputs.tobytes())
    digest.update(batch.targets.tobytes())
    return digest.hexdigest()

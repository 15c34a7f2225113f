"""A run that is being trained, and its folder: what is saved after a step, and restored later.

:class:`RunOnDisk` knows when an evaluation or a checkpoint is due, and writes both. The loop around
it (:mod:`mlx_tlstm.training.loop`) only asks what to do next.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_tlstm.checks import require
from mlx_tlstm.files import json_text, replace_file, replace_text
from mlx_tlstm.models.arrays import load_arrays, save_arrays
from mlx_tlstm.models.folder import CONFIG_FILE, WEIGHTS_FILE, ModelConfig, read_config
from mlx_tlstm.models.trained import WEIGHTS
from mlx_tlstm.tasks import Batch
from mlx_tlstm.training.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    Damage,
    damage_refused,
)
from mlx_tlstm.training.divergence import NonFiniteError
from mlx_tlstm.training.evaluation import evaluate
from mlx_tlstm.training.reports import EvaluationReport, StepReport, StepTotals, best_of, better
from mlx_tlstm.training.runs import CHECKPOINTS, EVENTS_FILE, METRICS_FILE, RunFolder
from mlx_tlstm.training.trainer import Trainer

STATE_FILE = "state.json"
#: Files that a checkpoint copies, to put them back: their names in the checkpoint and in the run.
#: Models are put back before records, so that a kill in between leaves no model without a record.
RUN_FILES = {f"{name}.safetensors": f"{name}/{WEIGHTS_FILE}" for name in WEIGHTS} | {
    name: name for name in (METRICS_FILE, EVENTS_FILE)
}
#: Settings that made a run's data, its network or its starting weights: they stay.
_UNCHANGED = ("task", "variant", "length", "batch_size", "seed", "forget_bias")
#: A rollback multiplies the learning rate by this.
ROLLBACK_FACTOR = 0.5
#: After so many rollbacks in one run, the next divergence stops it.
MAX_ROLLBACKS = 5


class RunOnDisk:
    """A trainer together with the run's folder, which the caller has locked.

    If the folder holds checkpoints, the newest that is whole is restored: into the trainer, and
    into the run's files, which become what they were when it was written. Otherwise the run is new,
    and its first checkpoint is written, so that there is one from the start.

    Args:
        trainer: A trainer that has done no step yet.
        run: The run's folder.
        note: Called with a line of text for the user.

    Attributes:
        records: The reports of all evaluations so far, as ``metrics.jsonl`` has them.

    Raises:
        CheckpointError: All checkpoints are damaged; or there is none, but other files of a run
            that has begun; or what is there fits neither configuration nor data.
        OSError: A file cannot be read or written.
    """

    def __init__(self, trainer: Trainer, run: RunFolder, note: Callable[[str], None]) -> None:
        self.trainer, self.run = trainer, run
        self.records: list[EvaluationReport] = []
        self._note = note
        self._totals = StepTotals()
        self._rollbacks = 0
        self._edited = False  # the settings, since the run was stopped
        self._started = self._saved_at = time.perf_counter()
        self._saved_step = -1
        self._store = CheckpointStore(run.path / CHECKPOINTS, trainer.config.keep_checkpoints)
        self._compare_model()
        checkpoint, damaged = self._store.newest()
        if checkpoint is not None:
            self._go_on(checkpoint, damaged)
        elif damaged:
            reasons = "; ".join(map(str, damaged))
            raise CheckpointError(f"[RunOnDisk] no checkpoint is whole: {reasons}")
        else:
            self._begin()

    def _compare_model(self) -> None:
        """Refuse to train another network than before, and find edited settings."""
        known, model = self.run.path / WEIGHTS[0] / CONFIG_FILE, self.trainer.model
        config = self.trainer.config
        if not known.exists():
            return
        with damage_refused():
            stored = read_config(known)
            if (began := stored.metadata.training) is not None:
                was, now = ({n: getattr(one, n) for n in _UNCHANGED} for one in (began, config))
                self._require_same(was, now, known)
        if stored.metadata.symbols != self.trainer.task.symbols:
            raise self._other_data(f"its symbols are not those of {known}")
        # The shapes of weights do not say it all: those of two depths may be equal.
        built = ModelConfig.of(model, model.metadata)
        now = {"layer": built.layer, **built.arguments, "dtype": config.dtype}
        before = {"layer": stored.layer, **stored.arguments, "dtype": stored.dtype}
        with damage_refused():
            self._require_same(before | {"recompute": now.get("recompute")}, now, known)
        origin = stored.metadata
        if origin.training is not None:
            self._edited = origin.training.replace(data=config.data) != config
        # No command trains with other settings half-way.
        command = None if self._edited else origin.command
        model.metadata = dataclasses.replace(model.metadata, command=command)

    def _require_same(self, before: Mapping[str, Any], now: Mapping[str, Any], known: Path) -> None:
        """Refuse what differs from what the run began with, which the file ``known`` says."""
        for name, value in now.items():
            expected = f"{before[name]}, as {known} says,"
            require(value == before[name], type(self).__name__, name, expected, value)

    def _go_on(self, checkpoint: Checkpoint, damaged: Sequence[Damage]) -> None:
        state = self._restore(checkpoint)
        self._started -= state["seconds"]
        self._rollbacks = state["rollbacks"]
        rate = self.trainer.config.learning_rate
        if state["learning_rate"] != rate:  # somebody edited the run's config.json
            self.trainer.optimizer.learning_rate = rate
        for damage in damaged:
            self._note(f"{damage}; going back to {checkpoint.path.name}")
            self._store.remove(damage.checkpoint)
        self._note(f"Going on after {self.trainer.samples:,} samples")

    def _begin(self) -> None:
        run = self.run
        present = [name for name in RUN_FILES.values() if (run.path / name).exists()]
        if present:
            raise CheckpointError(
                f"[RunOnDisk] 'run' must hold checkpoints but {str(run.path)!r} holds "
                f"{', '.join(present)} and none"
            )
        run.describe_model(self.trainer.model)
        self.save()

    @property
    def seconds(self) -> float:
        """Time spent in training so far; time between a stop and the resumption does not count."""
        return time.perf_counter() - self._started

    @property
    def best(self) -> EvaluationReport:
        """The report of the evaluation with the best metric; of equal ones the first."""
        return best_of(self.trainer.task.metric, self.records)

    @property
    def solved(self) -> bool:
        """Whether the last evaluation's metric reached the task's ``solved_at``."""
        task = self.trainer.task
        if not self.records or task.solved_at is None:
            return False
        return not better(task.metric, task.solved_at, self.records[-1][task.metric])

    @property
    def evaluation_due(self) -> bool:
        """Whether to evaluate before the next step."""
        trainer, config = self.trainer, self.trainer.config
        due = trainer.samples % config.eval_every < config.batch_size
        return self._totals.steps > 0 and (due or trainer.step >= trainer.total_steps)

    @property
    def finished(self) -> bool:
        """Whether there is no step and no evaluation left to do."""
        ended = self.solved or self.trainer.step >= self.trainer.total_steps
        return ended and not self.evaluation_due

    @property
    def checkpoint_due(self) -> bool:
        """Whether to write a checkpoint now; if an evaluation is due too, it comes first."""
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
        """Evaluate the model, append the report to ``metrics.jsonl``, and save the model.

        It is saved as ``last``, and as ``best`` too if its metric is better than all before.

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
        """Save the model as ``last``, unless there was no step since :meth:`evaluate` did so."""
        if self._totals.steps:
            self.run.save_model("last", self.trainer.model, {"samples": self.trainer.samples})

    def save(self) -> None:
        """Write a checkpoint, unless a weight is not finite: then the next step reports that."""
        trainer, run = self.trainer, self.run
        if not trainer.finite:
            return
        next_batch = trainer.task.train_batch(trainer.step)
        state = {
            "step": trainer.step,
            "seconds": self.seconds,
            "rollbacks": self._rollbacks,
            "learning_rate": trainer.config.learning_rate,
            "totals": dataclasses.asdict(self._totals),
            "random_key": mx.random.state[0].tolist(),
            "next_batch": _fingerprint([next_batch]),
            "evaluation_data": self._evaluation_data,
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
        """Deal with a divergence: record it in ``events.jsonl``, then roll back or raise ``error``.

        A rollback restores the newest checkpoint that is at least one update older than the
        divergence, and lowers the learning rate: without an update in between, the same numbers
        would come again. Then it writes a new checkpoint, with the new learning rate.
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
        replace_text(run.path / EVENTS_FILE, lines)
        self.save()
        self._note(
            f"The {error.quantity} is {error.value} at step {error.step}; back to step "
            f"{trainer.step} with learning rate {rate:g}"
        )

    @functools.cached_property
    def _evaluation_data(self) -> str:
        task = self.trainer.task
        return _fingerprint(
            batch for split in ("validation", "test") for batch in task.eval_batches(split)
        )

    def _other_data(self, how: str) -> CheckpointError:
        place = self.trainer.config.data
        found = "" if place is None else f" in {place!r}"
        return CheckpointError(
            f"[RunOnDisk] the data must be what the run was trained on but that{found} is not: "
            f"{how}"
        )

    def _restore(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Restore trainer and files from a checkpoint; returns the content of its state file."""
        trainer, run, path, names = self.trainer, self.run, checkpoint.path, checkpoint.files()
        try:
            state = json.loads((path / STATE_FILE).read_text())
            arrays = {
                name: load_arrays(path / f"{name}.safetensors", "RunOnDisk")[0]
                for name in ("weights", "optimizer", "carried")
                if f"{name}.safetensors" in names
            }
            batch = trainer.task.train_batch(state["step"])
            same_data = state["next_batch"] == _fingerprint([batch])
            evaluation_data = state["evaluation_data"]
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
        if evaluation_data != self._evaluation_data:
            raise self._other_data(f"what checkpoint {path} was evaluated on differs")
        mx.random.seed((first << 32) | second)
        run.describe_model(trainer.model, anew=self._edited)
        for name, target in RUN_FILES.items():
            if name in names:
                replace_file(run.path / target, partial(shutil.copyfile, path / name))
            else:
                (run.path / target).unlink(missing_ok=True)
        self.records = run.read_metrics()
        self._saved_step, self._saved_at = trainer.step, time.perf_counter()
        return state


def _fingerprint(batches: Iterable[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(batch.inputs.tobytes())
        digest.update(batch.targets.tobytes())
    return digest.hexdigest()

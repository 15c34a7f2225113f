"""Settings and data with which every task trains in a fraction of a second; a way to stop it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tlstm import SequenceModel, load, training
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks import TASKS, Task
from mlx_tlstm.training.reports import StepReport
from mlx_tlstm.training.runs import RunFolder

TINY = {"depth": 2, "hidden_size": 8, "batch_size": 4, "eval_every": 8, "samples": 24}


def write_text(path: Path) -> Path:
    """4,000 bytes in which a byte tells much about the next one."""
    words = np.random.default_rng(0).choice(["tensor ", "memory ", "cell ", "gate\n"], 800)
    path.write_bytes("".join(words).encode()[:4000])
    return path


def write_images(folder: Path) -> Path:
    """MNIST's four files with 60 and 10 random images."""
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 60), ("t10k", 10)):
        for name, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            values = rng.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8)
            header = np.array([0x800 + len(shape), *shape], dtype=">u4").tobytes()
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + values.tobytes())
    return folder


def tiny_settings(text: Path, images: Path) -> Callable[..., TrainingConfig]:
    """Tiny settings of any task: ``settings(task, **changes)``."""
    own: dict[str, dict[str, Any]] = {
        "memorization": {"length": 2},
        "addition": {"length": 2},
        "wikipedia": {"length": 10, "data": str(text)},
        "mnist": {"length": 28, "data": str(images)},
        "pmnist": {"length": 14, "data": str(images)},
    }
    return lambda task, **changes: TASKS[task].quick().replace(**{**TINY, **own[task], **changes})


def load_run(run: Path, weights: str = "best") -> tuple[RunFolder, Task, SequenceModel]:
    """The folder, the task with its data, and the model, in training mode."""
    model = load(run, weights)
    return RunFolder.open(run), training.task_of(model), model.train()


def write_run(
    path: Path,
    config: TrainingConfig,
    values: Iterable[float],
    test: dict[str, float] | None = None,
    **record: Any,
) -> RunFolder:
    """A run's folder as training leaves it, without models.

    Args:
        values: What its task is judged by, at each 1,000 samples and minute.
        test: Figures of the end; without them the run has not ended.
        record: What each evaluation has besides.
    """
    run = RunFolder.create(path, config)
    for number, value in enumerate(values, start=1):
        base = {"samples": 1000 * number, "seconds": 60.0 * number}
        run.append_metrics(base | {TASKS[config.task].metric: value} | record)
    if test is not None:
        run.save_test_metrics(test)
    return run


class Stop(Exception):  # noqa: N818 (no error: the test's way out of training)
    pass


class StopAt(training.Callback):
    """Leaves training as a crash does: after a step, or a number of steps or evaluations from now.

    Attributes:
        steps: Numbers of the steps that were taken.
        records: Of the evaluations.
        notes: What was said on the way.
    """

    def __init__(
        self, step: int | None = None, steps: int | None = None, evaluations: int | None = None
    ) -> None:
        self._step, self._steps, self._evaluations = step, steps, evaluations
        self.notes: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.steps: list[int] = []

    def on_step(self, trainer: training.Trainer, report: StepReport) -> None:
        self.steps.append(trainer.step)
        if trainer.step == self._step or len(self.steps) == self._steps:
            raise Stop

    def on_evaluation(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if len(self.records) == self._evaluations:
            raise Stop

    def on_note(self, text: str) -> None:
        self.notes.append(text)

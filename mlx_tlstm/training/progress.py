"""What a run shows on the terminal: a first line, then a progress bar or a line an evaluation."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from mlx_tlstm import blas
from mlx_tlstm.layers.base import RecurrentLayer
from mlx_tlstm.models.sequence import SequenceModel
from mlx_tlstm.streams import forgiving, say
from mlx_tlstm.tasks import Task
from mlx_tlstm.training.callbacks import Callback
from mlx_tlstm.training.memory_prediction import StepSizes, describe, device_name, limit, predict
from mlx_tlstm.training.reports import EvaluationReport, StepReport
from mlx_tlstm.training.step_graph import gradient_nodes
from mlx_tlstm.training.trainer import Trainer

_METRICS = {"accuracy": "accuracy", "sequence_accuracy": "whole sequences"}


def _memory_line(sizes: StepSizes) -> str:
    about, without = "about", ""
    ours = isinstance(sizes.layer, RecurrentLayer)
    if not ours and not gradient_nodes(sizes.layer, 1, sizes.input_size):
        about, without = "at least", ", without what the cell keeps, which MLX cannot write out"
    return (
        f"memory: {about} {describe(predict(sizes))} at the peak of a step{without}; "
        f"{device_name()} has {describe(limit())}"
    )


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """The task's metrics in a record or an evaluation, as in ``accuracy 98.20 %``."""
    parts = [f"{metrics['bpc']:.4f} bits per character"] if "bpc" in metrics else []
    for name, words in _METRICS.items():
        if name in metrics:
            parts.append(f"{words} {metrics[name]:.2%}".replace("%", " %"))
    return ", ".join(parts)


def causality_note(task: Task, model: SequenceModel) -> str | None:
    """A warning that belongs beside a language model's figure where later text leaks into it."""
    config = task.config
    if task.metric != "bpc" or model.causal:
        return None
    return (
        f"Note: {config.variant} is not causal at depth {config.depth}: its layer normalisation "
        "lets later characters leak into earlier predictions, so its bits per character are no "
        "measure of a language model."
    )


class Progress(Callback):
    """Shows a run on the terminal.

    Args:
        bar: True for a progress bar on standard error, False for a line for each evaluation on
            standard output; ``None`` takes the bar if standard error is a terminal.
    """

    def __init__(self, bar: bool | None = None) -> None:
        self._errors = forgiving(sys.stderr)
        self._wants_bar = self._errors.isatty() if bar is None else bar
        self._bar: tqdm | None = None
        self._total = 0
        self._metric = ""
        self._shown: dict[str, str] = {}
        self._new_samples, self._since = 0, 0.0  # what was trained since the last line, and when

    def on_start(self, trainer: Trainer) -> None:
        config, task = trainer.config, trainer.task
        device = mx.default_device()
        say(
            f"{config.task} · {config.variant} · L={config.depth} M={config.hidden_size} · "
            f"{trainer.parameter_count:,} parameters · {trainer.total_steps:,} steps of "
            f"{config.batch_size} samples · {str(device.type).rpartition('.')[2].upper()}"
        )
        say(_memory_line(StepSizes.of(config, task, trainer.model, trainer.workers.size)))
        slow = device.type == mx.DeviceType.cpu and not blas.is_fast()
        leak = causality_note(task, trainer.model)
        for note in (leak, f"Warning: {blas.hint()}" if slow else None):
            if note:
                say(note, error=True)
        self._metric = task.metric
        self._total = trainer.total_steps * config.batch_size
        self._shown = {}
        self._new_samples, self._since = 0, time.perf_counter()
        if self._wants_bar:
            self._bar = tqdm(
                total=self._total,
                initial=trainer.samples,
                unit=" samples",
                file=self._errors,
                dynamic_ncols=True,  # else of no width, since the file is not sys.stderr itself
            )

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self._new_samples += trainer.config.batch_size  # also what a rollback takes back
        if self._bar is not None:
            self._shown["loss"] = f"{report.loss:.4f}"
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update(trainer.samples - self._bar.n)  # less than nothing after a rollback

    def on_note(self, text: str) -> None:
        tqdm.write(text, file=self._errors)

    def on_evaluation(self, record: EvaluationReport) -> None:
        if self._bar is not None:
            self._shown[self._metric] = f"{record[self._metric]:.4f}"
            self._bar.set_postfix(self._shown)
            return
        now = time.perf_counter()
        rate = self._new_samples / max(now - self._since, 1e-3)
        self._new_samples, self._since = 0, now
        speed = ""
        if rate:  # a resumed run may begin with an evaluation
            left = tqdm.format_interval((self._total - record["samples"]) / rate)
            speed = f"  {rate:,.0f} samples/s  {left} left"
        say(
            f"{record['samples']:>9,} samples  loss {record['loss']:.4f}  "
            f"{format_metrics(record)}{speed}"
        )

    def on_end(self) -> None:
        if self._bar is not None:
            self._bar.close()

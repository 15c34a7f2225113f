"""Metrics of a model over a whole split of its task's data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_tlstm.checks import require, require_integer
from mlx_tlstm.models.sequence import SequenceModel, require_model
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.recurrence.random_state import current_key, random_key
from mlx_tlstm.recurrence.snapshot import require_evaluated, snapshot
from mlx_tlstm.tasks import Batch, Task
from mlx_tlstm.training.objective import cross_entropy, encode, graph_steps, logits_at
from mlx_tlstm.training.rebatching import rebatched


def evaluate(
    model: SequenceModel,
    task: Task,
    split: str,
    on_batch: Callable[[], object] | None = None,
    *,
    all_metrics: bool = False,
    batch_size: int | None = None,
) -> dict[str, float]:
    """Compute the metrics of a model over a whole split.

    The result does not depend on the batch size, but for the rounding of sums. Text is read in
    the task's own number of streams in any case: a smaller batch size reads some of them after
    the others.

    Args:
        model: The model. A copy of it runs, in evaluation mode, with the weights that it has at the
            time of the call; the model itself is not changed, nor is the state of ``mx.random``,
            where random numbers that the layer draws begin.
        task: The task that the model was built for.
        split: ``"validation"`` or ``"test"``.
        on_batch: Called before each batch; what it raises ends the evaluation.
        all_metrics: Whether to compute more than training records.
        batch_size: Most sequences to compute side by side; ``None`` takes the task's own batches.

    Returns:
        ``loss``, the mean negative log-likelihood in nats over the task's loss positions, and
        ``bpc`` (the same in bits), or ``accuracy`` over its answer positions with, where the task
        reports it, ``sequence_accuracy``, the share of sequences right at all of them.

        With ``all_metrics`` also ``accuracy`` for text, and what the figures are means over: the
        numbers of ``predictions`` in the loss, of ``answers`` in the accuracy and, where the task
        reports ``sequence_accuracy``, of ``sequences``.

    Raises:
        ValueError: The task has no such split, inputs of another width or other symbols than the
            model, or more classes; ``batch_size`` is no positive integer, or ``model`` is of a
            subclass with its own ``__call__``.
    """
    require_model("evaluate", model)
    same = task.symbols is None or model.metadata.symbols in (None, task.symbols)
    require(same, "evaluate", "task", "of the symbols that the model knows", task.symbols)
    batches = task.eval_batches(split)
    if batch_size is not None:
        batch_size = require_integer("evaluate", "batch_size", batch_size)
        batches = rebatched(batches, batch_size)
    answers = all_metrics or task.metric == "accuracy"
    totals = _totals(model, task, batches, on_batch, answers)
    metrics = {"loss": totals["loss"] / totals["predictions"]}
    if task.metric == "bpc":
        metrics["bpc"] = metrics["loss"] / math.log(2)
    if answers:
        metrics["accuracy"] = totals["right_answers"] / totals["answers"]
    if answers and task.reports_sequences:
        metrics["sequence_accuracy"] = totals["right_sequences"] / totals["sequences"]
    if all_metrics:
        metrics |= {name: totals[name] for name in ("predictions", "answers")}
    if all_metrics and task.reports_sequences:
        metrics["sequences"] = totals["sequences"]
    return metrics


def _totals(
    model: SequenceModel,
    task: Task,
    batches: Iterable[Batch],
    on_batch: Callable[[], object] | None,
    answers: bool,
) -> Counter[str]:
    """Sums over ``batches`` in evaluation mode, and how many values each sum has.

    With ``answers`` also the right answers and the sequences that are right at all of them.
    """
    totals = Counter()
    state = None
    model = snapshot(model).eval()
    require_evaluated("evaluate", model)
    run = _Run(model, task, answers)
    with random_key(current_key()):
        for batch in batches:
            if on_batch is not None:
                on_batch()
            sums, state = run(task.checked(batch), None if batch.fresh else state)
            totals.update(
                predictions=batch.targets[:, task.loss_positions].size,
                answers=batch.targets[:, task.answer_positions].size,
                sequences=len(batch.targets),
            )
            totals.update({name: total.item() for name, total in sums.items()})
    return totals


class _Run:
    """Sums over a batch and the state after it, by compiled functions of a model.

    Long sequences are read in parts, as a stream with its flush at the end: the same time steps.
    """

    def __init__(self, model: SequenceModel, task: Task, answers: bool) -> None:
        self._model = model
        self._task = task
        self._answers = answers
        self._whole = CompiledFunction(model, self._layer_and_sums)
        self._part = CompiledFunction(model, lambda model, x, state: model.layer.stream(x, state))
        self._end = CompiledFunction(model, self._sums)

    def __call__(self, batch: Batch, state: Any) -> tuple[dict[str, mx.array], Any]:
        targets = mx.array(batch.targets)
        steps, most = batch.targets.shape[1], graph_steps(self._model.layer)
        if steps <= most:
            sums, state = self._whole(self._encoded(batch.inputs), targets, state)
        else:
            outputs = []
            for start in range(0, steps, most):
                x = self._encoded(batch.inputs[:, start : start + most])
                y, state = self._part(x, state)
                mx.eval(y, state)
                outputs.append(y)
            delay = self._model.layer.delay
            if delay:
                end = mx.zeros((len(x), delay, x.shape[-1]), x.dtype)
                outputs.append(self._part(end, state)[0])
            sums = self._end(mx.concatenate(outputs, axis=1)[:, delay:], targets)
        mx.eval(sums, state)
        return sums, state

    def _encoded(self, inputs: np.ndarray) -> mx.array:
        return encode(inputs, self._task.input_size, self._model.layer.dtype)

    def _layer_and_sums(
        self, model: SequenceModel, x: mx.array, targets: mx.array, state: Any
    ) -> tuple[dict[str, mx.array], Any]:
        y, state = model.layer(x, state)
        return self._sums(model, y, targets), state

    def _sums(self, model: SequenceModel, y: mx.array, targets: mx.array) -> dict[str, mx.array]:
        task = self._task
        logits = logits_at(model, y, task.loss_positions)
        classes = logits.shape[-1]
        expected = f"one of {task.output_size} classes, as the task has, or more"
        require(classes >= task.output_size, "evaluate", "model", expected, classes)
        sums = {"loss": cross_entropy(logits, targets[:, task.loss_positions]).sum()}
        if self._answers:
            if task.answer_positions != task.loss_positions:
                logits = logits_at(model, y, task.answer_positions)
            right = mx.argmax(logits, axis=-1) == targets[:, task.answer_positions]
            sums["right_answers"] = right.sum()
            sums["right_sequences"] = right.all(axis=1).sum()
        return sums

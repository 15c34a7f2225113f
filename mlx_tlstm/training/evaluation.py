"""Measuring a model on a split."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_tlstm.model import SequenceModel
from mlx_tlstm.runs import RunFolder
from mlx_tlstm.tasks import Batch, Task, make_task
from mlx_tlstm.training.objective import (
    build_model,
    check_layer,
    cross_entropy,
    encode,
    logits_at,
)


def evaluate(
    model: SequenceModel, task: Task, split: str, on_batch: Callable[[], object] | None = None
) -> dict[str, float]:
    """Metrics of a model over the whole of a split.

    Args:
        model: Its training mode is off meanwhile, which saves memory, and then as it was.
        task: The task that the model was built for.
        split: ``"validation"`` or ``"test"``.
        on_batch: Called before each batch; what it raises ends the evaluation.

    Returns:
        ``loss``, the mean negative log-likelihood in nats over the task's loss positions, and
        ``bpc`` (the same in bits), or ``accuracy`` over its answer positions with, where the task
        reports it, ``sequence_accuracy``, the share of sequences right at all of them.

    Raises:
        ValueError: The task has no such split.
    """
    was_training = model.training
    model.eval()
    try:
        return _evaluate(model, task, split, on_batch)
    finally:
        model.train(was_training)


def _evaluate(
    model: SequenceModel, task: Task, split: str, on_batch: Callable[[], object] | None
) -> dict[str, float]:
    losses = answers = sequences = 0
    total_loss, right_answers, right_sequences = 0.0, 0, 0
    state = None
    for batch in task.eval_batches(split):
        if on_batch is not None:
            on_batch()
        sums, state = _batch_sums(model, task, batch, None if batch.fresh else state)
        mx.eval(sums, state)
        total_loss += sums["loss"].item()
        losses += batch.targets[:, task.loss_positions].size
        if task.metric == "accuracy":
            right_answers += sums["answers"].item()
            answers += batch.targets[:, task.answer_positions].size
            right_sequences += sums["sequences"].item()
            sequences += len(batch.targets)
    metrics = {"loss": total_loss / losses}
    if task.metric == "bpc":
        return {**metrics, "bpc": metrics["loss"] / math.log(2)}
    metrics["accuracy"] = right_answers / answers
    if task.reports_sequences:
        metrics["sequence_accuracy"] = right_sequences / sequences
    return metrics


def _batch_sums(
    model: SequenceModel, task: Task, batch: Batch, state: Any
) -> tuple[dict[str, mx.array], Any]:
    """Sums over one batch, not yet evaluated, and the state after it."""
    layer = model.layer
    x = encode(batch.inputs, task.input_size, layer.cell.weight.dtype)
    targets = mx.array(batch.targets)
    y, state = layer(x, state)
    logits = logits_at(model, y, task.loss_positions)
    sums = {"loss": cross_entropy(logits, targets[:, task.loss_positions]).sum()}
    if task.metric == "accuracy":
        if task.answer_positions != task.loss_positions:
            logits = logits_at(model, y, task.answer_positions)
        right = mx.argmax(logits, axis=-1) == targets[:, task.answer_positions]
        sums["answers"] = right.sum()
        sums["sequences"] = right.all(axis=1).sum()
    return sums, state


def load_run(path: str | Path, weights: str = "best") -> tuple[RunFolder, Task, SequenceModel]:
    """A saved run with its task and its model, in training mode, holding the saved weights.

    Args:
        path: The run's folder.
        weights: ``"best"`` or ``"last"``.

    Raises:
        ValueError: The folder holds no run, or one of its files is missing, damaged, or does not
            fit the others.
        FileNotFoundError: The data that the run was trained on is gone.
        DataUnavailableError: The data cannot be downloaded.
    """
    run = RunFolder.open(path)
    check_layer(run.config)
    task = make_task(run.config)
    model = build_model(run.config, task)
    run.load_weights(model, weights)
    return run, task, model

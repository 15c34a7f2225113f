"""The memory of a training step at its peak, from sizes alone.

A step has three moments at which its memory may be largest: the end of the forward pass, which
keeps every time step's states and what the backward pass reads again; the first weight gradient,
which gathers many steps; and the update, which holds gradients beside weights and moments. MLX
allocates an operation's result when it schedules it, tens of operations ahead of the one that runs,
so that short-lived arrays of about a time step count as well.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import os
from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.layers.base import RecurrentCell
from mlx_tlstm.models.sequence import SequenceModel
from mlx_tlstm.tasks import Task
from mlx_tlstm.training.step_bytes import FLOAT32, StepBytes

GIB = 1 << 30
#: Copies of the parameters, in float32, between steps: weights and Adam's two moments.
_KEPT_COPIES = 3
#: Such copies that the update adds while it runs: gradients, clipped ones, and the next moments.
_UPDATE_COPIES = 4
#: Arrays of logits, in float32, that the loss and its gradient make at once.
_LOGIT_COPIES = 6


@dataclasses.dataclass(frozen=True)
class StepSizes:
    """The sizes that decide the memory of one training step.

    Args:
        cell: The layer's cell.
        parameters: Trained numbers in the model.
        rows: B, the sequences that go through the network at once.
        parts: How many such parts a training step has; see ``TrainingConfig.accumulate``.
        steps: T, time steps of a sequence.
        loss_steps: Time steps with a loss.
        output_size: S.
        recompute: Whether the backward pass computes activations anew.
    """

    cell: RecurrentCell
    parameters: int
    rows: int
    parts: int
    steps: int
    loss_steps: int
    output_size: int
    recompute: bool

    @classmethod
    def of(
        cls, config: TrainingConfig, task: Task, model: SequenceModel, workers: int = 1
    ) -> StepSizes:
        """The sizes of a step of ``config``; the model's weights need not be evaluated."""
        steps = task.sequence_steps(config.length)
        return cls(
            cell=model.layer.cell,
            parameters=sum(array.size for _, array in tree_flatten(model.trainable_parameters())),
            rows=max(1, config.batch_size // (config.accumulate * workers)),
            parts=config.accumulate,
            steps=steps,
            loss_steps=len(range(*task.loss_positions.indices(steps))),
            output_size=task.output_size,
            recompute=config.recompute,
        )


def predict(sizes: StepSizes) -> int:
    """Bytes at the peak of a training step, as ``mx.get_peak_memory()`` counts them.

    On the CPU it is within 15 % of what is measured. With kernels it was never compared with a
    measurement on a GPU.
    """
    each, cell = StepBytes.of(sizes.cell, sizes.rows, sizes.recompute), sizes.cell
    size = cell.weight.dtype.size
    half = size < FLOAT32
    steps = sizes.steps + cell.delay
    copy = FLOAT32 * sizes.parameters
    resident = _KEPT_COPIES * copy + (size * sizes.parameters if half else 0)
    if sizes.parts > 1:
        resident += copy + sizes.parts * each.state  # sums of gradients, the parts' last states
    resident += each.state

    inputs = size * sizes.rows * sizes.steps * cell.input_size
    output = sizes.rows * cell.hidden_size
    logits = FLOAT32 * _LOGIT_COPIES * sizes.rows * sizes.loss_steps * sizes.output_size
    # The layer's inputs, and twice its outputs and those of the loss; then inputs, plain and
    # projected, and the gradients of outputs and projected inputs.
    forward = inputs + steps * output * (4 * size + FLOAT32) + logits
    backward = inputs + steps * output * (2 * size + 2 * FLOAT32)

    turn = min(each.turn, steps)
    ahead = min(each.ahead, steps) * each.transient
    kept = each.state + each.residuals
    moments = [
        forward + steps * kept + ahead,
        _UPDATE_COPIES * copy + (size * sizes.parameters // 2 if half else 0),
    ]
    if turn == steps:
        moments.append(backward + steps * (each.pending + each.gathered) + ahead + copy)
    else:
        first = (steps - turn) * kept + turn * (each.pending + each.gathered)
        moments.append(backward + first + ahead + 2 * copy)
    return resident + max(moments)


def limit() -> int:
    """Bytes that the default device may use: a GPU's working set, or the machine's memory."""
    if mx.default_device().type == mx.cpu:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    info = mx.device_info()
    # Metal names what it recommends; CUDA only what there is.
    return int(info.get("max_recommended_working_set_size") or info["total_memory"])


def require_fits(
    config: TrainingConfig, task: Task, model: SequenceModel, workers: int = 1
) -> None:
    """Refuse what the device has no memory for, before any of it is allocated.

    Args:
        config: The settings.
        task: The task they name.
        model: The model they name; it need not be evaluated.
        workers: Processes that share each batch.

    Raises:
        ValueError: The prediction is above :func:`limit`; the message says which change of one
            setting would fit.
    """
    sizes, allowed = StepSizes.of(config, task, model, workers), limit()
    needed = predict(sizes)
    if needed <= allowed:
        return
    changes = ", ".join(_fitting_changes(sizes, config, task, workers, allowed))
    advice = (
        f"one of these fits: {changes}"
        if changes
        else (
            "no batch_size, length, accumulate or recompute alone makes it fit: lower several, or "
            "hidden_size or depth"
        )
    )
    raise ValueError(
        f"[Trainer] a training step must fit into the {describe(allowed)} of "
        f"{device_name()} but is predicted to need {describe(needed)}; {advice}"
    )


def _fitting_changes(
    sizes: StepSizes, config: TrainingConfig, task: Task, workers: int, allowed: int
) -> list[str]:
    """For each setting the value nearest to the present one that alone makes a step fit."""

    def fits(**changes: object) -> bool:
        return predict(dataclasses.replace(sizes, **changes)) <= allowed

    changes = []
    unit = config.accumulate * workers

    def of_length(length: int) -> dict[str, int]:
        steps = task.sequence_steps(length)
        return {"steps": steps, "loss_steps": len(range(*task.loss_positions.indices(steps)))}

    rows = _first(range(sizes.rows - 1, 0, -1), lambda rows: fits(rows=rows))
    if rows is not None:
        changes.append(f"batch_size {rows * unit}")
    shorter = task.shorter_lengths(config.length)
    length = _first(shorter, lambda length: fits(**of_length(length)))
    if length is not None:
        changes.append(f"length {length}")
    share = config.batch_size // workers
    low = [parts for parts in range(1, math.isqrt(share) + 1) if share % parts == 0]
    divisors = [*low, *(share // parts for parts in reversed(low))]
    more = [parts for parts in divisors if parts > config.accumulate]
    parts = _first(more, lambda parts: fits(rows=share // parts, parts=parts))
    if parts is not None:
        changes.append(f"accumulate {parts}")
    if not config.recompute and fits(recompute=True):
        changes.append("recompute")
    return changes


def _first(values: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The first of the values that fits; all values behind one that fits have to fit too."""
    index = bisect.bisect_left(values, True, key=fits)
    return values[index] if index < len(values) else None


def describe(size: int) -> str:
    """Bytes in words, as in ``1.5 GiB``."""
    if size < GIB:
        return f"{max(1, math.ceil(size / (1 << 20)))} MiB"
    return f"{size / GIB:,.1f} GiB"


def device_name() -> str:
    """The default device in words."""
    return "the CPU" if mx.default_device().type == mx.cpu else "the GPU"

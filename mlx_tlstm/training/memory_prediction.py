"""The memory of a training step at its peak, from sizes alone.

The account is a plain one: the weights and Adam's moments, what the forward pass keeps of every
time step, what the gradient of the weights is formed from, the sequence with its outputs and
logits, and a margin for what comes and goes while all that is there.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.kernels import BACKENDS
from mlx_tlstm.layers.base import RecurrentCell, RecurrentLayer
from mlx_tlstm.layers.layer import Layer
from mlx_tlstm.models.sequence import SequenceModel
from mlx_tlstm.ops.convolution import steps_at_once
from mlx_tlstm.recurrence.transition import Transition
from mlx_tlstm.recurrence.trees import arrays_of, by_name
from mlx_tlstm.tasks import Task
from mlx_tlstm.training.objective import compiles
from mlx_tlstm.training.step_graph import gradient_nodes, made_and_kept

GIB = 1 << 30
#: The groups of this process by kind, and where Linux keeps what is set for groups.
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
#: What a prediction is multiplied by. MLX allocates results before it computes them, and fuses
#: operations or not, so that the same step needs now more, now less.
MARGIN = 1.15
_FLOAT32 = 4
#: Steps whose arrays are there while they and their gradients are computed.
_STEPS_COMPUTED = 4
#: Weights' gradients of single steps that MLX makes before it adds them up, if nothing compiled it.
_GRADIENTS_AHEAD = 32
#: Arrays as large as the logits, in float32, that the loss and its gradient make at once.
_LOGIT_COPIES = 6
#: Arrays as large as the outputs: projected inputs, outputs, read-outs, and the gradients of these.
_OUTPUT_COPIES = 6


@dataclasses.dataclass(frozen=True)
class StepSizes:
    """The sizes that decide the memory of one training step.

    Args:
        layer: The layer.
        input_size: R.
        parameters: Trained numbers in the model.
        rows: B, the sequences that go through the network at once.
        steps: T, time steps of a sequence.
        loss_steps: Time steps with a loss.
        output_size: S.
        parts: How many parts of B rows a training step has; see ``TrainingConfig.accumulate``.
        recompute: Whether the backward pass computes activations anew.
    """

    layer: Layer
    input_size: int
    parameters: int
    rows: int
    steps: int
    loss_steps: int
    output_size: int
    parts: int = 1
    recompute: bool = False

    @classmethod
    def of(
        cls, config: TrainingConfig, task: Task, model: SequenceModel, workers: int = 1
    ) -> StepSizes:
        """The sizes of a step of ``config``; the model's weights need not be evaluated."""
        steps = task.sequence_steps(config.length)
        return cls(
            layer=model.layer,
            input_size=task.input_size,
            parameters=sum(array.size for _, array in tree_flatten(model.trainable_parameters())),
            rows=max(1, config.batch_size // (config.accumulate * workers)),
            steps=steps,
            loss_steps=len(range(*task.loss_positions.indices(steps))),
            output_size=task.output_size,
            parts=config.accumulate,
            recompute=config.recompute,
        )


def predict(sizes: StepSizes) -> int:
    """Bytes at the peak of a training step, as ``mx.get_peak_memory()`` counts them.

    On a CPU no step that was measured needed more, and the prediction is at most 1.6 times the most
    that a few steps needed; three times for a cell in a :class:`mlx_tlstm.Recurrent`, and five
    times for these and the sLSTM where weights are larger than what the steps keep. With kernels it
    was never compared with a measurement on a GPU; there MLX may hold some hundred MB for what it
    has scheduled, which is little where memory is scarce.
    """
    layer = sizes.layer
    itemsize, copy = layer.dtype.size, _FLOAT32 * sizes.parameters
    account = _tensor_steps if isinstance(layer, RecurrentLayer) else _steps_of_another_cell
    of_layer = account(sizes)

    # Weights and two moments; in half precision a rounded copy and its gradient.
    resident = 3 * copy + (2 * itemsize * sizes.parameters if itemsize < _FLOAT32 else 0)
    in_parts = sizes.parts > 1
    if in_parts:
        resident += sizes.parts * of_layer.state  # the parts' last states

    outputs = _OUTPUT_COPIES * (sizes.steps + layer.delay) * layer.hidden_size
    logits = _LOGIT_COPIES * sizes.loss_steps * sizes.output_size
    in_layers_dtype = itemsize * (sizes.steps * sizes.input_size + outputs)
    sequence = sizes.rows * (in_layers_dtype + _FLOAT32 * logits)

    steps = of_layer.kept + max(of_layer.gathered + of_layer.computing, of_layer.flushed)
    # The weights' gradients, twice where they are summed up, and the sum of the parts before.
    backward = (2 + in_parts) * copy + steps + sequence
    # The update comes when the steps are gone: gradients, clipped ones, next weights and moments.
    working = max(backward, 5 * copy)
    return int(MARGIN * (resident + working))


class _Account(NamedTuple):
    """Bytes that the layer's steps and their gradient need.

    Attributes:
        state: A state.
        kept: What all steps on the whole tensor keep for the gradient.
        flushed: What the smaller steps after them keep. It is gone before the whole ones' gradient.
        gathered: What the weights' gradient is formed from, as far as it is not kept.
        computing: What comes and goes while steps are computed; little beside the smaller ones.
    """

    state: int
    kept: int
    flushed: int
    gathered: int
    computing: int


def _tensor_steps(sizes: StepSizes) -> _Account:
    """The account of one of this package's layers."""
    cell, rows = sizes.layer.cell, sizes.rows
    transition = cell.active_transition(rows)
    flush = _flush_steps(cell, transition)
    steps = sizes.steps + flush.count(1.0)
    matrices = BACKENDS[cell.selected_backend()].products_kept
    if transition.backend.plain:
        transition = cell.transition  # beside which the reference keeps `matrices`
    itemsize, (channels, *fan_in) = cell.weight.dtype.size, cell.weight.shape
    state, residuals, reduced = (rows * size for size in _step_bytes(cell, transition))

    # The weights' gradient is formed from hidden states and gradients of activations, of several
    # steps at once. For a matrix product they are joined, and what each location reads is gathered.
    locations = rows * math.prod(cell.state_shape[:-1])
    at_once = min(transition.weight_gradient_steps(rows), steps)
    matrix, gathered = 0, at_once * itemsize * locations * (cell.hidden_size + channels)
    if transition.backend.makes_windows(rows, cell.weight):
        elements = locations * math.prod(fan_in)
        matrix = itemsize * elements
        gathered = 2 * gathered + min(at_once, steps_at_once(elements)) * matrix
    kept = state + (reduced if sizes.recompute else residuals)
    return _Account(
        state=state,
        kept=steps * kept,
        flushed=math.ceil((sizes.steps + sum(flush) - steps) * kept),
        gathered=max(0, gathered - at_once * kept),
        computing=_STEPS_COMPUTED * (state + residuals + matrices * matrix),
    )


def _flush_steps(cell: RecurrentCell, transition: Transition) -> list[float]:
    """The steps that flush the last outputs: for each the share of the tensor that it runs on."""
    if cell.delay == 0:
        return []
    prepared = transition.prepare(cell.transition_parameters())
    corners = [transition.corner(prepared, steps)[0] for steps in range(1, cell.delay + 1)]
    locations = transition.backend.geometry.locations
    return [corner.backend.geometry.locations / locations for corner in corners]


def _step_bytes(cell: RecurrentCell, transition: Transition) -> list[int]:
    """Bytes of one sequence: its state, what else a step keeps for its gradient, and of that what
    it keeps with ``recompute``.

    They are read from the arrays of a step that is never computed.
    """
    prepared = transition.prepare(cell.transition_parameters())
    projected = mx.zeros((1, cell.hidden_size), cell.weight.dtype)
    after, residuals, _ = transition.forward(prepared, projected, cell.initial_state(1))
    return [
        sum(array.nbytes for _, array in tree_flatten(tree) if array is not None)
        for tree in (after, residuals, transition.reduce(residuals))
    ]


def _steps_of_another_cell(sizes: StepSizes) -> _Account:
    """The account of a cell in a :class:`mlx_tlstm.Recurrent`."""
    layer, rows = sizes.layer, sizes.rows
    before = layer.initial_state(1)
    state = sum(array.nbytes for array in by_name(before).values())
    # A cell may hand arrays on as they are; they are there once.
    x = mx.zeros((1, sizes.input_size), layer.dtype)
    layer(x[:, None], before)  # which says what is wrong with the cell, if anything is
    _, after = layer.cell(x, before)
    old = {id(array) for array in arrays_of(before, before)}
    new = sum(array.nbytes for array in arrays_of(after, before) if id(array) not in old)
    one, two = (made_and_kept(gradient_nodes(layer, n, sizes.input_size)) for n in (1, 2))
    # Of one sequence; what is made of weights alone is there once.
    made, kept = (of_two - of_one for of_one, of_two in zip(one, two, strict=True))
    kept = rows * (new + (0 if sizes.recompute else kept))
    # The weights' gradient of each step, or the sum along the steps with what is added to it.
    gradients = 2 if sizes.recompute else sizes.steps
    if not compiles(layer, sizes.steps, sizes.parameters):
        gradients = min(gradients, _GRADIENTS_AHEAD)
    return _Account(
        state=rows * state,
        kept=rows * state + sizes.steps * kept + gradients * _FLOAT32 * sizes.parameters,
        flushed=0,
        gathered=0,
        computing=_STEPS_COMPUTED * rows * made,
    )


def limit() -> int:
    """Bytes that the default device may use: a GPU's working set, or the machine's memory.

    Where Linux gives the process less than the machine has, as in a container, it is that.
    """
    if mx.default_device().type == mx.cpu:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return min([physical, *_group_limits()])
    info = mx.device_info()
    # Metal names what it recommends, but for some virtual machines; CUDA only what there is.
    names = ("max_recommended_working_set_size", "total_memory", "memory_size")
    return int(next(info[name] for name in names if info.get(name)))


def _group_limits() -> Iterator[int]:
    """Limits of the control groups that the process is in; a group's holds for those within it."""
    with contextlib.suppress(OSError):  # as where there is no Linux
        for line in _OWN_GROUPS.read_text(errors="surrogateescape").splitlines():
            _, kind, group = line.split(":", 2)
            name = {"": "memory.max", "memory": "memory.limit_in_bytes"}.get(kind)  # v2 and v1
            for path in (Path(group), *Path(group).parents) if name else ():
                # A container may see its own group as the outermost; without a limit it is "max".
                with contextlib.suppress(OSError, ValueError):
                    yield int((_GROUPS / kind / path.relative_to("/") / name).read_text())


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
    # A prediction makes constants of a step, which grow with the square of the depth.
    hopeless = _least(dataclasses.replace(sizes, rows=1, steps=1)) > allowed
    needed = _least(sizes) if hopeless else predict(sizes)
    if needed <= allowed:
        return
    changes = ""
    if not hopeless:
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


def _least(sizes: StepSizes) -> int:
    """Bytes of all steps' states, which are a part of any prediction, from their shapes alone."""
    layer = sizes.layer
    if not isinstance(layer, RecurrentLayer):
        return 0
    states = sum(array.nbytes for _, array in tree_flatten(layer.initial_state(sizes.rows)))
    flush = _flush_steps(layer.cell, layer.cell.active_transition(sizes.rows))
    return int((sizes.steps + sum(flush)) * states)


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

"""From a task's batch to logits, and from logits to the loss; whether that is compiled."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_tlstm.checks import require
from mlx_tlstm.config import BY_LAG, TrainingConfig
from mlx_tlstm.layers.base import RecurrentLayer, normal
from mlx_tlstm.layers.layer import Layer
from mlx_tlstm.layers.variants import make_layer, variant_named
from mlx_tlstm.models.metadata import ModelMetadata
from mlx_tlstm.models.sequence import SequenceModel
from mlx_tlstm.recurrence.compilation import GRAPH_STEPS
from mlx_tlstm.recurrence.trees import by_name
from mlx_tlstm.rivals.base import RivalCell
from mlx_tlstm.tasks import Task, task_type
from mlx_tlstm.tasks.base import require_below
from mlx_tlstm.training.origin import training_command

#: Steps of a stacked LSTM's layers in a graph.
_STACKED_STEPS = 3000
#: Arrays of a state up to which steps that are computed anew are compiled.
_TRACED_ARRAYS = 16
#: Bytes of the weights' gradients that may be kept of single steps.
_PILED = 1 << 26


def check_layer(config: TrainingConfig, backend: str | None = None) -> None:
    """Raise ``ValueError`` if the settings name no layer, or one that ``backend`` cannot run.

    Cheap, and needs no data.
    """
    layer = _make_layer(config, task_type(config.task), 1, backend)
    if isinstance(layer, RecurrentLayer):
        layer.cell.selected_backend()


def lag_forget_bias(steps: int) -> float:
    """The bias b of a forget gate that keeps half of a memory over ``steps``: σ(b)^steps = 1/2."""
    return -math.log(math.expm1(math.log(2) / steps))


def build_model(config: TrainingConfig, task: Task, backend: str | None = None) -> SequenceModel:
    """The untrained model of a configuration; ``config.seed`` decides its weights.

    Its metadata says where it comes from. ``backend`` is passed to the layer; see
    :class:`mlx_tlstm.TLSTM`.

    Raises:
        ValueError: The settings name no layer.
    """
    mx.random.seed(config.seed)
    layer = _make_layer(config, type(task), task.input_size, backend)
    # A one-hot input picks one row: with 1/sqrt(R) it would drown in the hidden state.
    fan_in = task.input_size if task.input_fan_in is None else task.input_fan_in
    if isinstance(layer, RecurrentLayer):
        projection = layer.cell.input_projection
        projection.weight = normal(projection.weight.shape, fan_in)
    elif isinstance(layer.cell, RivalCell) and not layer.cell.has_own_start:
        layer.cell.input_weight = normal(layer.cell.input_weight.shape, fan_in)
    model = SequenceModel(layer, task.output_size)
    model.set_dtype(getattr(mx, config.dtype))
    command = training_command(config)
    model.metadata = ModelMetadata(config.task, config.variant, {}, command, task.symbols, config)
    return model


def _make_layer(
    config: TrainingConfig, task: type[Task], input_size: int, backend: str | None
) -> Layer:
    return make_layer(
        config.variant,
        input_size,
        config.hidden_size,
        config.depth,
        _forget_bias(config, task),
        config.kernel_size,
        config.recompute,
        backend,
    )


def _forget_bias(config: TrainingConfig, task: type[Task]) -> float:
    """The bias that the configuration names, or the one for the task's lag."""
    if config.forget_bias != BY_LAG:
        return config.forget_bias
    steps = task.memory_steps(config.length)
    expected = f"a number for {config.task}, whose memories have no one length,"
    require(steps is not None, "TrainingConfig", "forget_bias", expected, config.forget_bias)
    delay = variant_named("TrainingConfig", config.variant).delay(config.depth)
    return lag_forget_bias(steps + delay)


def encode(inputs: np.ndarray, input_size: int, dtype: mx.Dtype) -> mx.array:
    """Inputs ``[B, T, R]`` for a layer: symbols ``[B, T]`` become one-hot rows, values stay.

    Raises:
        ValueError: A symbol is none of 0 to ``input_size`` - 1.
    """
    inputs = np.asarray(inputs)
    if inputs.ndim != 2:
        return mx.array(inputs).astype(dtype)
    require_below("encode", "inputs", inputs, input_size)
    return mx.eye(input_size, dtype=dtype)[mx.array(inputs)]


def logits_at(model: SequenceModel, y: mx.array, positions: slice) -> mx.array:
    """Logits in float32 from the layer's outputs ``[B, T, M]``, at ``positions`` only."""
    return model.readout(y[:, positions]).astype(mx.float32)


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Negative log-likelihood in nats of each target ``[B, T]``; logits ``[B, T, S]``."""
    return nn.losses.cross_entropy(logits, targets)


def graph_steps(layer: Layer) -> int:
    """Time steps of a layer up to which a graph pays; see :data:`GRAPH_STEPS`.

    A stacked LSTM's steps pass its layers one after the other. MLX goes through a graph by a
    recursion, which had no stack left at ten layers of 784 steps.
    """
    layers = layer.depth - layer.delay if isinstance(layer, RecurrentLayer) else 1
    return min(GRAPH_STEPS, max(1, _STACKED_STEPS // layers))


def compiles(layer: Layer, steps: int, parameters: int) -> bool:
    """Whether training compiles its step; see :func:`graph_steps`.

    Two kinds of cells that are not ours run uncompiled: where the weights' gradients of all steps,
    which MLX may keep in a graph until its end, are large; and where a state of many arrays is
    computed anew, which takes minutes to trace.
    """
    if steps > graph_steps(layer):
        return False
    if isinstance(layer, RecurrentLayer):
        return True
    many = layer.checkpoint is not None and len(by_name(layer.initial_state(1))) > _TRACED_ARRAYS
    return not many and 4 * parameters * steps <= _PILED

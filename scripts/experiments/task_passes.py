"""Forward and backward passes at the sizes of the paper's run times (Fig. 3 to 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
from benchmarking.products import Product, layer_products, linear_products
from mlx import nn

from experiments.paper import BEST_VARIANT, PAPER_VARIANTS, figure_of
from experiments.widths import equal_width, parameter_count
from mlx_tlstm import VARIANTS, Recurrent, SequenceModel, make_layer
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.recurrence.snapshot import snapshot
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training import memory_prediction
from mlx_tlstm.training.objective import cross_entropy, logits_at

#: What --quick makes of the paper's sizes: M is divided, though not to below its least value, and
#: B and T are cut.
QUICK_HIDDEN_DIVISOR, QUICK_LEAST_HIDDEN, QUICK_BATCH_SIZE, QUICK_LENGTH = 4, 50, 4, 56


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a runtime panel: a variant at a depth, with the sizes of its task.

    Args:
        task: Name of the task.
        variant: Name of the layer.
        depth: L.
        hidden_size: M.
        batch_size: B.
        length: T, inputs of a sequence.
        input_size: R.
        output_size: S.
    """

    task: str
    variant: str
    depth: int
    hidden_size: int
    batch_size: int
    length: int
    input_size: int
    output_size: int

    @property
    def loss_positions(self) -> slice:
        """Steps that have a loss."""
        return TASKS[self.task].loss_positions

    @property
    def loss_steps(self) -> int:
        """How many these are."""
        return len(range(*self.loss_positions.indices(self.length)))


def points_of(
    task: str, quick: bool, variants: Sequence[str] = PAPER_VARIANTS
) -> list[list[Point]]:
    """The points of a task's panel, a list of depths for each variant, in this order.

    One of others' networks has at each depth about as many parameters as the paper's best variant
    there; where it has no depth, as at the panel's least.

    Args:
        task: Name of the task.
        quick: Take smaller sizes than the paper's.
        variants: Their names.
    """
    experiment, paper = figure_of(task), TASKS[task].paper()
    hidden_sizes = experiment.hidden_sizes
    batch_size, length = paper.batch_size, TASKS[task].sequence_steps(paper.length)
    if quick:
        batch_size, length = min(batch_size, QUICK_BATCH_SIZE), min(length, QUICK_LENGTH)
        hidden_sizes = {
            variant: max(QUICK_LEAST_HIDDEN, hidden_size // QUICK_HIDDEN_DIVISOR)
            for variant, hidden_size in hidden_sizes.items()
        }
    symbols = (experiment.input_size, experiment.output_size)

    def point(variant: str, depth: int) -> Point:
        M = hidden_sizes.get(variant)
        if M is None:
            parameters = parameter_count(BEST_VARIANT, symbols, hidden_sizes[BEST_VARIANT], depth)
            depth = VARIANTS[variant].settings.get("depth", depth)
            M = equal_width(variant, symbols, depth, parameters)
        return Point(task, variant, depth, M, batch_size, length, *symbols)

    of_all = ([point(variant, depth) for depth in experiment.depths] for variant in variants)
    return [list({one.depth: one for one in reversed(points)}.values())[::-1] for points in of_all]


class TaskPass:
    """A forward and backward pass of a model with its loss, over random inputs and targets.

    The loss is that of training, at the task's loss positions; gradients are those of all
    parameters.
    """

    def __init__(self, point: Point) -> None:
        self.point = point
        self.model = _model(point)
        B, T = point.batch_size, point.length
        self.x = mx.random.uniform(shape=(B, T, point.input_size))
        self.targets = mx.random.randint(0, point.output_size, (B, point.loss_steps))
        self._value_and_grad = CompiledFunction(self.model, self._loss_and_gradients)
        mx.eval(self.model.parameters(), self.x, self.targets)

    def _loss_and_gradients(self, model: SequenceModel) -> tuple[mx.array, Any]:
        model = snapshot(model)
        return nn.value_and_grad(model, partial(self._loss, model))()

    def _loss(self, model: SequenceModel) -> mx.array:
        y, _ = model.layer(self.x)
        logits = logits_at(model, y, self.point.loss_positions)
        return cross_entropy(logits, self.targets).mean()

    def run(self) -> tuple[mx.array, Any]:
        """Loss and gradients, evaluated."""
        results = self._value_and_grad()
        mx.eval(results)
        return results


def pass_products(point: Point) -> list[Product]:
    """The matrix products of the same pass."""
    layer, (B, T) = _model(point).layer, (point.batch_size, point.length)
    projection = linear_products(B * T, point.input_size, point.hidden_size, input_gradient=False)
    return [
        *layer_products(layer, B, T),
        *([] if isinstance(layer, Recurrent) else projection),
        *linear_products(B * point.loss_steps, point.hidden_size, point.output_size),
    ]


def predicted_bytes(point: Point) -> int:
    """Memory that a training step of these sizes needs, at least what the pass does."""
    symbols = (point.input_size, point.output_size)
    sizes = memory_prediction.StepSizes(
        layer=_model(point).layer,
        input_size=point.input_size,
        parameters=parameter_count(point.variant, symbols, point.hidden_size, point.depth),
        rows=point.batch_size,
        steps=point.length,
        loss_steps=point.loss_steps,
        output_size=point.output_size,
    )
    return memory_prediction.predict(sizes)


def _model(point: Point) -> SequenceModel:
    """A model whose arrays MLX fills when they are used."""
    layer = make_layer(point.variant, point.input_size, point.hidden_size, point.depth)
    return SequenceModel(layer, point.output_size)

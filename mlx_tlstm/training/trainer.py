"""The state of a run, and one training step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_map

from mlx_tlstm.checks import require
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks import make_task
from mlx_tlstm.training.objective import (
    build_model,
    check_layer,
    cross_entropy,
    encode,
    logits_at,
)

BETAS = [0.9, 0.999]
#: Float16 holds 6e-8 to 65504: gradients are formed this much larger and divided again in
#: float32. A step whose gradient overflows is tried again with the next factor. At the start
#: channel normalisation divides by a deviation of zero, and the gradient's norm is some 10,000.
FLOAT16_LOSS_SCALES = (1024.0, 32.0, 1.0, 1 / 32)


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is infinite or no number."""


class StepReport(NamedTuple):
    """What a step measured before it changed the weights.

    Attributes:
        loss: Mean negative log-likelihood in nats over loss positions and batch: Eq. 30 divided
            by the number of positions.
        gradient_norm: Global norm of its gradient before clipping.
    """

    loss: float
    gradient_norm: float


class Trainer:
    """A configuration being trained.

    The data of a step is a pure function of configuration and step, so that ``step``,
    ``weights``, ``optimizer.state`` and ``carried`` are the whole state of a run.

    Weights and Adam's moments are kept in float32 whatever ``config.dtype``: in half precision the
    squares of small gradients vanish and small updates round to nothing. The model computes with
    a rounded copy.

    Args:
        config: The settings. Their combination is checked before any data is loaded.

    Attributes:
        config: As given.
        task: The task it names.
        model: The model, in ``config.dtype``.
        weights: The trained weights, in float32.
        optimizer: Adam with bias correction.
        step: Number of steps done.
        carried: Layer state after the last step; the next batch goes on from it, as from a
            constant, unless it is fresh.

    Raises:
        ValueError: A setting does not fit the task or the variant.
        FileNotFoundError: ``config.data`` does not exist.
        DataUnavailableError: The data can neither be downloaded nor found in the cache.
    """

    def __init__(self, config: TrainingConfig) -> None:
        check_layer(config)
        self.config = config
        self.task = make_task(config)
        generated = self.task.samples_per_epoch is None
        require(
            not generated or config.epochs is None,
            type(self).__name__,
            "epochs",
            f"None for {self.task.name}, whose samples are generated ('samples' ends training),",
            config.epochs,
        )
        self.total_steps = self.task.train_steps
        self.model = build_model(config, self.task)
        self.weights = tree_map(
            lambda weight: weight.astype(mx.float32), self.model.trainable_parameters()
        )
        self.optimizer = optimizers.Adam(config.learning_rate, betas=BETAS, bias_correction=True)
        self.optimizer.init(self.weights)
        self.step = 0
        self.carried: Any = None
        self._dtype = getattr(mx, config.dtype)
        self._loss_scales = FLOAT16_LOSS_SCALES if self._dtype == mx.float16 else (1.0,)
        self._value_and_grad = nn.value_and_grad(self.model, self._scaled_loss)
        mx.eval(self.model.parameters(), self.weights, self.optimizer.state)

    @property
    def samples(self) -> int:
        """Training sequences seen."""
        return self.step * self.config.batch_size

    @property
    def parameter_count(self) -> int:
        """Trained numbers in the model."""
        return sum(array.size for _, array in tree_flatten(self.weights))

    def train_step(self) -> StepReport:
        """Do the next step, with one evaluation of the graph; in float16 with two or more.

        Raises:
            NonFiniteError: Loss or gradient norm is not finite; the weights are lost.
        """
        loss, norm, gradients, state = self._gradients()
        self.weights = self.optimizer.apply_gradients(gradients, self.weights)
        self.model.update(tree_map(lambda weight: weight.astype(self._dtype), self.weights))
        self.carried = state
        mx.eval(loss, norm, self.weights, self.model.parameters(), self.optimizer.state, state)
        report = StepReport(loss.item(), norm.item())
        self.step += 1
        for name, value in zip(("loss", "gradient norm"), report, strict=True):
            self.require_finite(name, value)
        return report

    def require_finite(self, name: str, value: float) -> None:
        """Raise :class:`NonFiniteError`, with the step and advice, unless ``value`` is finite."""
        if math.isfinite(value):
            return
        config = self.config
        advice = [f"a lower learning_rate (now {config.learning_rate:g})"]
        advice.append(f"a lower clip_norm (now {config.clip_norm or 'off'})")
        if config.dtype == "float16":
            advice.append("dtype bfloat16 or float32")
        raise NonFiniteError(
            f"[{type(self).__name__}] the {name} is {value} at step {self.step} "
            f"({self.samples:,} samples); try {' or '.join(advice)}"
        )

    def _gradients(self) -> tuple[mx.array, mx.array, Any, Any]:
        """Loss, gradient norm, clipped float32 gradients and layer state, none evaluated yet."""
        task = self.task
        batch = task.train_batch(self.step)
        x = encode(batch.inputs, task.input_size, self._dtype)
        targets = mx.array(batch.targets)[:, task.loss_positions]
        before = None if batch.fresh else self.carried
        for scale in self._loss_scales:
            (_, loss, state), scaled = self._value_and_grad(x, targets, before, scale)
            gradients = tree_map(lambda g, scale=scale: g.astype(mx.float32) / scale, scaled)
            # Without clipping the call still measures the norm.
            gradients, norm = optimizers.clip_grad_norm(
                gradients, self.config.clip_norm or math.inf
            )
            if scale == self._loss_scales[-1] or math.isfinite(norm.item()):
                break
        return loss, norm, gradients, state

    def _scaled_loss(
        self, x: mx.array, targets: mx.array, state: Any, scale: float
    ) -> tuple[mx.array, mx.array, Any]:
        y, state = self.model.layer(x, state)
        logits = logits_at(self.model, y, self.task.loss_positions)
        loss = cross_entropy(logits, targets).mean()
        return loss * scale, loss, state

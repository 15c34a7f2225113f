"""The state of a run, and one training step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_map

from mlx_tlstm.checks import require
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.layers.variants import VARIANTS
from mlx_tlstm.models.arrays import filled, require_like
from mlx_tlstm.models.sequence import SequenceModel
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.recurrence.random_state import random_key
from mlx_tlstm.recurrence.snapshot import kept_arrays, replace_weights, snapshot
from mlx_tlstm.recurrence.trees import arrays_of, by_name, distinct, of_rows, with_arrays
from mlx_tlstm.rivals import BUILT_IN
from mlx_tlstm.tasks import Batch, Task, make_task
from mlx_tlstm.tasks.seeding import Stream, random_generator
from mlx_tlstm.training import memory_prediction
from mlx_tlstm.training.divergence import NonFiniteError
from mlx_tlstm.training.objective import (
    build_model,
    check_layer,
    compiles,
    cross_entropy,
    encode,
    logits_at,
)
from mlx_tlstm.training.own_cell import require_trainable
from mlx_tlstm.training.reports import StepReport
from mlx_tlstm.training.untouched import Untouched
from mlx_tlstm.training.workers import Workers

BETA1 = 0.9
#: Float16 holds 6e-8 to 65504: gradients are formed this much larger and divided again in
#: float32. A step whose gradient overflows is tried again with the next factor. At the start
#: channel normalisation divides by a deviation of zero, and the gradient's norm is some 10,000.
FLOAT16_LOSS_SCALES = (1024.0, 32.0, 1.0, 1 / 32)


class Trainer:
    """A configuration being trained.

    The data of a step is a pure function of configuration and step, and so are random numbers that
    the layer draws in it, as those of dropout. So ``step``, ``weights``, ``optimizer.state`` and
    ``carried`` are the whole state of a run: :meth:`arrays` and :meth:`restore` are their way to a
    checkpoint and back.

    Weights and Adam's moments are kept in float32 whatever ``config.dtype``: in half precision the
    squares of small gradients vanish and small updates round to nothing. The model computes with
    a rounded copy.

    Args:
        config: The settings. Their combination is checked before any data is loaded.
        workers: The processes that train together. Each has a trainer; the first process calls its
            methods, and the others do the same by :meth:`follow`.
        backend: What runs the layer in this process; see :class:`mlx_tlstm.TLSTM`. No run keeps
            it.

    Attributes:
        config: As given.
        workers: As given.
        task: The task that ``config`` names.
        model: The model, in ``config.dtype``. Other threads may sample from it at any time.
        weights: The trained weights, in float32.
        optimizer: Adam with bias correction.
        step: Number of steps done.
        carried: Layer state after the last step. The next batch goes on from it, without a gradient
            through it, unless that batch is fresh.

    Raises:
        ValueError: A setting does not fit the task or the variant, or ``backend`` the machine; or a
            cell of the user's own cannot be trained, see :mod:`mlx_tlstm.training.own_cell`.
        FileNotFoundError: ``config.data`` does not exist.
        DataUnavailableError: The data can neither be downloaded nor found in the cache.
    """

    def __init__(
        self,
        config: TrainingConfig,
        workers: Workers | None = None,
        backend: str | None = None,
    ) -> None:
        check_layer(config, backend)
        self.config = config
        self.workers = workers or Workers()
        self._share = self.workers.share(config.batch_size)
        size = self._share.stop - self._share.start
        expected = f"a divisor of a worker's {size} sequences"
        even = size % config.accumulate == 0
        require(even, type(self).__name__, "accumulate", expected, config.accumulate)
        self.task = make_task(config)
        self.total_steps = self.task.train_steps
        self.model = build_model(config, self.task, backend)
        if VARIANTS[config.variant] is not BUILT_IN.get(config.variant):
            require_trainable(self.model, size // config.accumulate, self.task.input_size)
        memory_prediction.require_fits(config, self.task, self.model, self.workers.size)
        _require_batches(self.task)
        self.weights = self.workers.from_first(
            tree_map(lambda weight: weight.astype(mx.float32), self.model.trainable_parameters())
        )
        self.optimizer = optimizers.Adam(
            float(config.learning_rate), betas=[BETA1, float(config.beta2)], bias_correction=True
        )
        self.optimizer.init(self.weights)
        self.step = 0
        self.carried: Any = None
        self._dtype = getattr(mx, config.dtype)
        self._loss_scales = FLOAT16_LOSS_SCALES if self._dtype == mx.float16 else (1.0,)
        steps = self.task.sequence_steps(config.length)
        self._compiles = compiles(self.model.layer, steps, self.parameter_count)
        self._value_and_grad = CompiledFunction(self.model, self._scaled_loss_and_gradients)
        self._untouched = Untouched(self.model)
        rounded = self._rounded(self.weights)
        mx.eval(rounded, self.model.parameters(), self.weights, self.optimizer.state)
        replace_weights(self.model, rounded)

    @property
    def samples(self) -> int:
        """Training sequences seen."""
        return self.step * self.config.batch_size

    @property
    def learning_rate(self) -> float:
        """Adam's step size: the configuration's, or less after a divergence."""
        return self.optimizer.learning_rate.item()

    @property
    def parameter_count(self) -> int:
        """Trained numbers in the model."""
        return sum(array.size for _, array in tree_flatten(self.weights))

    def train_step(self) -> StepReport:
        """Do the next step, with one evaluation of the graph and one more for each part.

        In float16 there is another for each scale that is tried.

        Raises:
            NonFiniteError: Loss or gradient norm is not finite; the weights are lost.
            WorkerLostError: Another process is gone.
        """
        self._announce("step")
        # The first process may have lowered it.
        self.optimizer.learning_rate = self.workers.from_first(self.optimizer.learning_rate)
        loss, norm, clipped, gradients, state = self._gradients()
        self.weights = self.optimizer.apply_gradients(gradients, self.weights)
        self.carried = state
        rounded = self._rounded(self.weights)
        mx.eval(loss, norm, clipped, self.weights, rounded, self.optimizer.state, state)
        replace_weights(self.model, rounded)  # evaluated, since other threads may read them
        report = StepReport(loss.item(), norm.item(), clipped.item())
        self.step += 1
        for name in ("loss", "gradient_norm"):
            value = getattr(report, name)
            self.require_finite(name.replace("_", " "), value, batch=self.step - 1)
        return report

    def arrays(self) -> dict[str, dict[str, mx.array]]:
        """The arrays of the state: ``weights``, ``optimizer`` and, where there is one, ``carried``.

        Each is a flat dictionary by name; ``carried`` is that of all workers.
        """
        self._announce("arrays")
        arrays = self._own_arrays()
        if self.carried is not None:
            arrays["carried"] = by_name(self.workers.joined(self.carried))
        mx.eval(arrays)
        return arrays

    def restore(self, step: int, arrays: Mapping[str, Mapping[str, mx.array]]) -> None:
        """Go on after ``step`` steps, with what :meth:`arrays` gave then.

        Raises:
            ValueError: An array is missing or does not fit the configuration; nothing has changed.
        """
        expected = self._own_arrays()
        if "carried" in arrays:
            expected["carried"] = by_name(self._initial_state())
        for name in expected:
            found = arrays.get(name, {})
            require_like(type(self).__name__, name, found, expected[name], "the configuration")
        self._announce("restore")
        self._receive(step, arrays)

    def follow(self, operation: str) -> None:
        """Do what the first process announced.

        Raises:
            NonFiniteError: As in the first process, which decides what comes of it.
            WorkerLostError: Another process is gone.
        """
        if operation == "step":
            self.train_step()
        elif operation == "arrays":
            self.arrays()
        else:
            zeros = {**self._own_arrays(), "carried": by_name(self._initial_state())}
            self._receive(0, zeros)

    def _announce(self, operation: str) -> None:
        if self.workers.first:
            self.workers.announce(operation)

    def _own_arrays(self) -> dict[str, dict[str, mx.array]]:
        return {
            "weights": dict(tree_flatten(self.weights)),
            "optimizer": dict(tree_flatten(self.optimizer.state)),
        }

    def _initial_state(self) -> Any:
        return self.model.layer.initial_state(self.config.batch_size)

    def _receive(self, step: int, arrays: Mapping[str, Mapping[str, mx.array]]) -> None:
        """Take over the first process's step and arrays; the others pass some of the same shapes.

        The layer state is the whole batch's, of which each process takes its share.
        """
        state = arrays.get("carried")
        initial = self._initial_state()
        zeros = by_name(initial)
        # In one order everywhere, which a file does not keep: they are sent one after the other.
        given = {
            "step": mx.array([step, int(state is not None)]),
            "arrays": {n: dict(sorted(arrays[n].items())) for n in ("weights", "optimizer")},
            "state": zeros if state is None else {name: state[name] for name in zeros},
        }
        taken = self.workers.from_first(given)
        mx.eval(taken)
        self.step, carried = taken["step"].tolist()
        self.weights = filled(self.weights, taken["arrays"]["weights"])
        self.optimizer.state = filled(self.optimizer.state, taken["arrays"]["optimizer"])
        whole = with_arrays(initial, [taken["state"][name] for name in zeros])
        self.carried = of_rows(whole, self._share) if carried else None
        rounded = self._rounded(self.weights)
        mx.eval(self.weights, rounded, self.optimizer.state, self.carried)
        replace_weights(self.model, rounded)

    @property
    def finite(self) -> bool:
        """Whether all weights are finite."""
        return all(mx.isfinite(array).all().item() for _, array in tree_flatten(self.weights))

    def require_finite(self, name: str, value: float, batch: int | None = None) -> None:
        """Raise :class:`NonFiniteError`, with the step and advice, unless ``value`` is finite.

        Args:
            name: What it is.
            value: A loss or norm, measured after the last step, or in it.
            batch: The training batch that gave it, where one did.
        """
        if math.isfinite(value):
            return
        config = self.config
        if batch == 0:  # which neither of them has changed
            advice = ["another seed", f"another forget_bias (now {config.forget_bias})"]
        else:
            advice = [f"a lower learning_rate (now {self.learning_rate:g})"]
            advice.append(f"a lower clip_norm (now {config.clip_norm or 'off'})")
        if config.dtype == "float16":
            advice.append("dtype bfloat16 or float32")
        message = (
            f"[{type(self).__name__}] the {name} is {value} at step {self.step} "
            f"({self.samples:,} samples); try {' or '.join(advice)}"
        )
        raise NonFiniteError(message, name, value, self.step, batch)

    def require_untouched(self) -> None:
        """Check that the model still has :attr:`weights`; put its modes back.

        Raises:
            ValueError: A callback changed what the next step would overwrite.
        """
        self._untouched.check(self._rounded(self.weights))

    def _rounded(self, weights: Any) -> Any:
        return tree_map(lambda weight: weight.astype(self._dtype), weights)

    def _gradients(self) -> tuple[mx.array, mx.array, mx.array, Any, Any]:
        """Loss, gradient norm, whether it was clipped, the clipped float32 gradients, layer state.

        Not all of them are evaluated yet.
        """
        batch = _train_batch(self.task, self.step)
        for scale in self._loss_scales:
            loss, gradients, state = self._batch_gradients(batch, scale)
            gradients, norm, clipped = _clipped(gradients, self.config)
            if scale == self._loss_scales[-1] or math.isfinite(norm.item()):
                break
        return loss, norm, clipped, gradients, state

    def _batch_gradients(self, batch: Batch, scale: float) -> tuple[mx.array, Any, Any]:
        """Loss and float32 gradients of a batch, over all workers, and this one's layer state."""
        first, parts = self._share.start, self.config.accumulate
        size = (self._share.stop - first) // parts
        losses, sums, states = [], None, []
        for part in range(parts):
            rows = slice(part * size, (part + 1) * size)  # of this worker's share
            whole = slice(first + rows.start, first + rows.stop)
            x = encode(batch.inputs[whole], self.task.input_size, self._dtype)
            targets = mx.array(batch.targets[whole])[:, self.task.loss_positions]
            before = None if batch.fresh else of_rows(self.carried, rows)
            function = self._value_and_grad
            if not self._compiles:
                function = function.plain
            with random_key(self._random_key(part)):
                (_, loss, state), scaled = function(x, targets, before, scale)
            gradients = tree_map(lambda g: g.astype(mx.float32) / (scale * parts), scaled)
            sums = gradients if sums is None else tree_map(mx.add, sums, gradients)
            losses.append(loss)
            states.append(state)
            if parts > 1:  # frees what the part's backward pass keeps
                mx.eval(sums, loss, state)
        loss = losses[0] if parts == 1 else mx.stack(losses).mean()
        if parts > 1:
            state = with_arrays(state, map(_joined, *(arrays_of(s, state) for s in states)))
        return self.workers.mean(loss), self.workers.mean(sums), state

    def _random_key(self, part: int) -> mx.array:
        """Where the random numbers that the layer draws for a part of this step's batch begin."""
        parts = self.config.accumulate
        index = (self.step * self.workers.size + self.workers.rank) * parts + part
        generator = random_generator(self.config.seed, Stream.MODEL, index)
        return mx.random.key(generator.bit_generator.random_raw())

    def _scaled_loss_and_gradients(
        self, model: SequenceModel, *arguments: Any
    ) -> tuple[tuple[mx.array, mx.array, Any], Any]:
        model = snapshot(model)  # gradients are those of placeholders that it gets

        def with_each_array_once(*arguments: Any) -> tuple[Any, ...]:
            scaled, loss, state = self._scaled_loss(model, *arguments)
            return scaled, loss, *distinct(state)

        value_and_grad = nn.value_and_grad(model, with_each_array_once)
        (scaled, loss, arrays, with_others), gradients = value_and_grad(*arguments)
        # Compiled, MLX fails on two parts of the state that no step has changed and that are equal.
        # One by one, since its graph of many at once takes minutes.
        state = with_others([mx.depends([array], [loss])[0] for array in arrays])
        return (scaled, loss, state), gradients

    def _scaled_loss(
        self, model: SequenceModel, x: mx.array, targets: mx.array, state: Any, scale: float
    ) -> tuple[mx.array, mx.array, Any]:
        with kept_arrays(model):
            y, state = model.layer(x, state)
            logits = logits_at(model, y, self.task.loss_positions)
        loss = cross_entropy(logits, targets).mean()
        return loss * scale, loss, state


def _train_batch(task: Task, step: int) -> Batch:
    """The batch of a training step; ``ValueError`` where it is none."""
    batch = task.checked(task.train_batch(step))
    shape = (task.config.batch_size, task.steps)
    expected = f"of shape {shape} (batch_size, steps) in training,"
    require(batch.targets.shape == shape, type(task).__name__, "targets", expected, batch.targets)
    return batch


def _require_batches(task: Task) -> None:
    """Check a task's batches as far as their first ones tell."""
    owner = type(task).__name__
    expected = "a pure function of the step, so that a run can go on,"
    same = _alike(_train_batch(task, 0), _train_batch(task, 0))
    require(same, owner, "train_batch", expected, "two different batches of step 0")
    for split in ("validation", "test"):
        first, again = (next(iter(task.eval_batches(split)), None) for _ in range(2))
        require(first is not None, owner, split, "a split of one batch or more", first)
        same = again is not None and _alike(task.checked(first), task.checked(again))
        expected = "the same batches at each call"
        require(same, owner, f"eval_batches({split!r})", expected, "others at the second")


def _alike(one: Batch, other: Batch) -> bool:
    return all(map(np.array_equal, one, other))


def _joined(*arrays: mx.array) -> mx.array:
    """The parts of a batch in one array; a number is that of the last."""
    return mx.concatenate(arrays) if arrays[0].ndim else arrays[-1]


def _clipped(gradients: Any, config: TrainingConfig) -> tuple[Any, mx.array, mx.array]:
    """Gradients clipped element by element, then by norm; their norm before, and whether any was.

    A limit of 0 is none.
    """
    norm = None
    if config.clip_value:
        limit = float(config.clip_value)
        _, norm = optimizers.clip_grad_norm(gradients, math.inf)
        gradients = tree_map(lambda gradient: mx.clip(gradient, -limit, limit), gradients)
    largest = float(config.clip_norm) or math.inf
    # Without clipping the call still measures the norm.
    gradients, norm_left = optimizers.clip_grad_norm(gradients, largest)
    clipped = norm_left > largest
    if norm is None:
        return gradients, norm_left, clipped
    return gradients, norm, clipped | (norm_left < norm)

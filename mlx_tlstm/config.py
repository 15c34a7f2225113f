"""How a model is trained: one frozen, self-validating record, saved beside the weights."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from mlx_tlstm.checks import (
    is_number,
    plain,
    require,
    require_choice,
    require_flag,
    require_integer,
    require_keys,
)
from mlx_tlstm.files import json_text, read_json, to_path
from mlx_tlstm.layers.base import DTYPES
from mlx_tlstm.layers.tlstm import MEMORY_INITS

ON_DIVERGENCE = ("stop", "rollback")
#: In place of a number for ``forget_bias``.
BY_LAG = "lag"
#: What can be counted: sizes of MLX's arrays, samples and steps, the seeds of its random keys.
_BITS = {
    31: ("depth", "hidden_size", "kernel_size", "length", "batch_size", "accumulate"),
    63: ("samples", "epochs", "eval_every", "checkpoint_every", "keep_checkpoints"),
    64: ("seed",),
}


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """All settings of a training run. Each task has a quick configuration and the paper's.

    Args:
        task: Name of a task in :data:`mlx_tlstm.tasks.TASKS`.
        variant: Name of a layer in :data:`mlx_tlstm.VARIANTS`.
        depth: L, the number of time steps that an input takes to reach the output; for stacked
            layers their number.
        hidden_size: M, the channels at each location.
        kernel_size: K, the kernel's size on every tensor axis; ``None`` takes the variant's.
        memory_init: What the untrained memory convolution does: ``"uniform"`` spreads memory evenly
            over its taps, ``"shift"`` moves it towards the output, ``"hold"`` keeps it in place.
        forget_bias: Starting bias of the forget gate: a number, or ``"lag"`` for the bias with
            which half of a memory is left after the number of steps for which the task needs it.
        weight_scale: Factor on the starting weights of the recurrence, which are normal with
            deviation 1/√(fan in).
        length: Size of the task: digits to add, symbols to memorize, characters in a training step,
            or time steps in which an image is read.
        batch_size: Sequences in one training step.
        accumulate: Number of parts in which a batch goes through the network, one after the other,
            to save memory; their gradients are added up for one update. It divides
            ``batch_size``.
        samples: Training sequences in all; ``None`` if ``epochs`` alone limits them.
        epochs: Passes over a finite training set; ``None`` if ``samples`` alone limits it.
        learning_rate: Adam's step size.
        beta2: Adam's decay of the mean of squared gradients, from 0 to below 1.
        clip_norm: Largest global norm of the gradient; 0 turns this clipping off.
        clip_value: Largest absolute value of an element of the gradient, applied before the norm is
            clipped; 0 turns this clipping off.
        on_divergence: What to do when a loss or gradient is not finite: ``"stop"``, or
            ``"rollback"`` to the last good checkpoint with half the learning rate.
        checkpoint_every: Training steps between two checkpoints; ``None`` leaves it to
            ``checkpoint_seconds``.
        checkpoint_seconds: Seconds between two checkpoints; 0 leaves it to ``checkpoint_every``.
        keep_checkpoints: How many of the newest checkpoints are kept.
        eval_every: Training sequences between two evaluations.
        dtype: Type of weights and hidden state; the memory cell is always float32.
        recompute: Compute activations anew in the backward pass, which saves memory.
        seed: Seed of the starting weights, the generated data and its order, 0 … 2^64 - 1.
        data: The user's own data (a text file, or a folder of MNIST files); ``None`` downloads.

    Scalars of NumPy and MLX are kept as Python's numbers of the same value: a learning rate of
    ``np.float32(1e-3)`` is 0.0010000000474974513. A path is kept as a string.
    """

    task: str
    variant: str
    depth: int
    hidden_size: int
    length: int
    batch_size: int
    eval_every: int
    samples: int | None = None
    epochs: int | None = None
    kernel_size: int | None = None
    memory_init: str = "uniform"
    forget_bias: float | str = 1.0
    weight_scale: float = 1.0
    learning_rate: float = 1e-3
    beta2: float = 0.999
    clip_norm: float = 1.0
    clip_value: float = 0.0
    accumulate: int = 1
    on_divergence: str = "stop"
    checkpoint_every: int | None = None
    checkpoint_seconds: float = 300.0
    keep_checkpoints: int = 3
    dtype: str = "float32"
    recompute: bool = False
    seed: int = 0
    data: str | None = None

    def __post_init__(self) -> None:
        owner = "TrainingConfig"
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        if isinstance(self.data, os.PathLike):
            object.__setattr__(self, "data", os.fsdecode(self.data))
        for name in ("depth", "hidden_size", "length", "batch_size", "eval_every"):
            require_integer(owner, name, getattr(self, name))
        for name in ("accumulate", "keep_checkpoints"):
            require_integer(owner, name, getattr(self, name))
        divides = self.batch_size % self.accumulate == 0
        expected = f"a divisor of batch_size {self.batch_size}"
        require(divides, owner, "accumulate", expected, self.accumulate)
        for name in ("samples", "epochs", "checkpoint_every"):
            if getattr(self, name) is not None:
                require_integer(owner, name, getattr(self, name))
        if self.kernel_size is not None:
            require_integer(owner, "kernel_size", self.kernel_size, minimum=2)
        require_integer(owner, "seed", self.seed, minimum=0)
        for bits, names in _BITS.items():
            for name in names:
                value = getattr(self, name)
                require(value is None or value < 1 << bits, owner, name, f"below 2^{bits}", value)
        require(
            self.samples is not None or self.epochs is not None,
            owner,
            "samples",
            "given where 'epochs' is not",
            self.samples,
        )
        switched = ("clip_norm", "clip_value", "checkpoint_seconds")
        for name in ("learning_rate", "weight_scale", "beta2", "forget_bias", *switched):
            value = getattr(self, name)
            or_lag = f" or {BY_LAG!r}" if name == "forget_bias" else ""
            valid = is_number(value) or (or_lag and isinstance(value, str) and value == BY_LAG)
            require(valid, owner, name, "a finite number" + or_lag, value)
        for name in ("learning_rate", "weight_scale"):
            require(getattr(self, name) > 0, owner, name, "positive", getattr(self, name))
        require(0 <= self.beta2 < 1, owner, "beta2", "from 0 to below 1", self.beta2)
        for name in switched:
            require(
                getattr(self, name) >= 0, owner, name, "0 (off) or positive", getattr(self, name)
            )
        require_choice(owner, "on_divergence", self.on_divergence, ON_DIVERGENCE)
        require_choice(owner, "memory_init", self.memory_init, MEMORY_INITS)
        require_choice(owner, "dtype", self.dtype, DTYPES)
        require_flag(owner, "recompute", self.recompute)
        for name in ("task", "variant"):
            value = getattr(self, name)
            require(isinstance(value, str), owner, name, "a string", value)
        require(self.data is None or isinstance(self.data, str), owner, "data", "a path", self.data)

    def replace(self, **changes: Any) -> TrainingConfig:
        """A copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)

    def save(self, path: str | Path) -> None:
        """Write the record as JSON."""
        to_path("TrainingConfig", "path", path).write_text(
            json_text(dataclasses.asdict(self), indent=2)
        )

    @classmethod
    def load(cls, path: str | Path) -> TrainingConfig:
        """Read a record that :meth:`save` wrote; unknown and missing keys are a ``ValueError``."""
        path = to_path("TrainingConfig", "path", path)
        return cls.from_json(read_json(path, cls.__name__), str(path))

    @classmethod
    def from_json(cls, values: object, source: str) -> TrainingConfig:
        """A configuration from a mapping of its fields; errors name ``source`` as their origin."""
        fields = dataclasses.fields(cls)
        required = [field.name for field in fields if field.default is dataclasses.MISSING]
        require_keys(cls.__name__, source, values, [field.name for field in fields], required)
        return cls(**values)  # type: ignore[arg-type]

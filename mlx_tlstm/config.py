"""How a model is trained: one frozen, self-validating record, saved beside the weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import field
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
from mlx_tlstm.layers.variants import variant_named

ON_DIVERGENCE = ("stop", "rollback")
#: In place of a number for ``forget_bias``.
BY_LAG = "lag"
_OWNER = "TrainingConfig"


def _setting(kind: Any, check: Callable[[str, Any], None]) -> dict[str, Any]:
    """A field's metadata: its type, or its choices, and what raises where a value is wrong."""
    return {"kind": kind, "check": check}


def _integer(bits: int, minimum: int = 1) -> dict[str, Any]:
    """What can be counted in so many bits: sizes of MLX's arrays, samples, seeds of its keys."""

    def check(name: str, value: Any) -> None:
        require_integer(_OWNER, name, value, minimum)
        require(value < 1 << bits, _OWNER, name, f"below 2^{bits}", value)

    return _setting(int, check)


def _number(expected: str, valid: Callable[[float], bool], word: str = "") -> dict[str, Any]:
    def check(name: str, value: Any) -> None:
        if not (word and isinstance(value, str) and value == word):
            or_word = f" or {word!r}" if word else ""
            require(is_number(value), _OWNER, name, f"a finite number{or_word}", value)
            require(valid(value), _OWNER, name, expected, value)

    return _setting(float, check)


def _choice(choices: tuple[str, ...]) -> dict[str, Any]:
    return _setting(choices, lambda name, value: require_choice(_OWNER, name, value, choices))


def _string(expected: str) -> dict[str, Any]:
    def check(name: str, value: Any) -> None:
        require(isinstance(value, str), _OWNER, name, expected, value)

    return _setting(str, check)


_FLAG = _setting(bool, lambda name, value: require_flag(_OWNER, name, value))
#: The positive numbers that float32 holds: smaller ones are 0 on a GPU, larger ones infinite.
_SMALLEST, _LARGEST = 2.0**-126, 2.0**128 - 2.0**104
_POSITIVE = _number(
    "a positive number that float32 holds", lambda value: _SMALLEST <= value <= _LARGEST
)
_BIAS = _number(
    "a number that float32 holds or 'lag'", lambda value: abs(value) <= _LARGEST, BY_LAG
)
#: The largest float32 below 1.
_BELOW_ONE = 1 - 2.0**-24
_SHARE = _number("from 0 to below 1 as float32,", lambda value: 0 <= value <= _BELOW_ONE)
_SWITCHED = _number(
    "0 (off) or a positive number that float32 holds",
    lambda value: value == 0 or _SMALLEST <= value <= _LARGEST,
)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """All settings of a training run. Each task has a quick configuration and the paper's.

    Args:
        task: Name of a task in :data:`mlx_tlstm.tasks.TASKS`.
        variant: Network configuration, a name in :data:`mlx_tlstm.VARIANTS`.
        depth: L: an output comes L - 1 time steps after its input; of networks without a tensor the
            number of layers.
        hidden_size: M, the number of channels at each location of the tensor.
        kernel_size: K, the kernel's size on every tensor axis, 2 or more; by default the variant's.
        batch_size: Sequences in a training step.
        accumulate: Compute each batch in so many parts, one after the other: the same step in less
            memory. The number divides ``batch_size``.
        length: Size of the task: digits to add, symbols to memorize, bytes in a training step,
            or time steps in which an image is read.
        learning_rate: Adam's step size.
        samples: Training sequences in all; where ``epochs`` is given too, the fewer of the two.
        epochs: Passes over the training set of wikipedia, mnist or pmnist.
        seed: Seed of the starting weights, the generated data and its order, 0 or more.
        forget_bias: Starting bias of the forget gate: a number or ``"lag"``, with which half of a
            memory is left after the number of time steps for which memorization or addition needs
            it.
        beta2: Adam's decay rate of the running mean of squared gradients, from 0 to below 1.
        clip_norm: Largest gradient norm; 0 turns this clipping off.
        clip_value: Largest size of an element of the gradient, before its norm is clipped; 0 turns
            this clipping off.
        on_divergence: What to do when a loss or gradient is not finite: stop, or go back to the
            last good checkpoint and halve the learning rate (``"rollback"``).
        dtype: Type of the weights and the hidden state. The memory cell, and the copies of the
            weights that Adam updates, are float32.
        recompute: Compute the gates' activations again in the backward pass instead of keeping
            them: less memory, more time.
        eval_every: Training sequences between two evaluations.
        checkpoint_every: Training steps between two checkpoints; by default ``checkpoint_seconds``
            alone decides.
        checkpoint_seconds: Seconds between two checkpoints; 0 leaves it to ``checkpoint_every``.
        keep_checkpoints: How many of the newest checkpoints to keep.
        data: Your own data: for wikipedia a text file, which may be packed as zip, gzip, bzip2
            or xz; for mnist and pmnist a folder of IDX or parquet files. By default the data is
            downloaded.

    Scalars of NumPy and MLX are kept as Python's numbers of the same value: a learning rate of
    ``np.float32(1e-3)`` is 0.0010000000474974513. A path is kept as a string.
    """

    task: str = field(metadata=_string("a string"))
    variant: str = field(metadata=_string("a string"))
    depth: int = field(metadata=_integer(31))
    hidden_size: int = field(metadata=_integer(31))
    length: int = field(metadata=_integer(31))
    batch_size: int = field(metadata=_integer(31))
    eval_every: int = field(metadata=_integer(63))
    samples: int | None = field(default=None, metadata=_integer(63))
    epochs: int | None = field(default=None, metadata=_integer(63))
    kernel_size: int | None = field(default=None, metadata=_integer(31, minimum=2))
    forget_bias: float | str = field(default=1.0, metadata=_BIAS)
    learning_rate: float = field(default=1e-3, metadata=_POSITIVE)
    beta2: float = field(default=0.999, metadata=_SHARE)
    clip_norm: float = field(default=1.0, metadata=_SWITCHED)
    clip_value: float = field(default=0.0, metadata=_SWITCHED)
    accumulate: int = field(default=1, metadata=_integer(31))
    on_divergence: str = field(default="stop", metadata=_choice(ON_DIVERGENCE))
    checkpoint_every: int | None = field(default=None, metadata=_integer(63))
    checkpoint_seconds: float = field(default=300.0, metadata=_SWITCHED)
    keep_checkpoints: int = field(default=3, metadata=_integer(63))
    dtype: str = field(default="float32", metadata=_choice(DTYPES))
    recompute: bool = field(default=False, metadata=_FLAG)
    seed: int = field(default=0, metadata=_integer(64, minimum=0))
    data: str | None = field(default=None, metadata=_string("a path"))

    def __post_init__(self) -> None:
        if isinstance(self.data, os.PathLike):
            object.__setattr__(self, "data", os.fsdecode(self.data))
        fields = dataclasses.fields(self)
        others = [each.name for each in fields if "check" not in each.metadata]
        expected = f"{_OWNER}'s own (what else a task of yours needs belongs in its class)"
        require(not others, type(self).__name__, "fields", expected, others)
        for each in fields:
            value = plain(getattr(self, each.name))
            object.__setattr__(self, each.name, value)
            if value is not None or each.default is not None:
                each.metadata["check"](each.name, value)
        divides = self.batch_size % self.accumulate == 0
        expected = f"a divisor of batch_size {self.batch_size}"
        require(divides, _OWNER, "accumulate", expected, self.accumulate)
        limited = self.samples is not None or self.epochs is not None
        require(limited, _OWNER, "samples", "given where 'epochs' is not", self.samples)

    def replace(self, **changes: Any) -> TrainingConfig:
        """A copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)

    def without_folder(self) -> dict[str, Any]:
        """All settings by name; of the path of the user's own data the last part only."""
        return dataclasses.asdict(self) | {"data": self.data and Path(self.data).name}

    def for_variant(self, name: str) -> TrainingConfig:
        """A copy for another variant, with the settings that its own paper names.

        A cell without a depth gets a depth of 1. What an earlier call has set stays, so that it is
        a task's configuration to start from.

        Raises:
            ValueError: There is no such variant in :data:`mlx_tlstm.VARIANTS`, or its settings are
                none of these fields.
        """
        settings = variant_named(_OWNER, name).settings
        known = {each.name for each in dataclasses.fields(self)} - {"variant"}
        expected = "fields of TrainingConfig but 'variant'"
        unknown = sorted(map(str, set(settings) - known))
        require(not unknown, _OWNER, f"settings (of {name})", expected, unknown)
        return self.replace(variant=name, **settings)

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
        known = [field.name for field in fields]
        require_keys(cls.__name__, source, values, known, required)
        return cls(**values)

"""The base class of tasks: batches, their sizes, the positions of the loss, and the metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from mlx_tlstm.checks import is_number, require, require_choice, require_integer
from mlx_tlstm.config import TrainingConfig


class Batch(NamedTuple):
    """One training or evaluation batch of B sequences of T steps.

    Attributes:
        inputs: ``[B, T]`` int32 symbols, or ``[B, T, R]`` float32 values.
        targets: ``[B, T]`` int32 classes; where a task has fewer losses than steps, only those at
            :attr:`Task.loss_positions` count.
        fresh: The sequences start from the zero state; otherwise they go on where the batch
            before stopped.
    """

    inputs: np.ndarray
    targets: np.ndarray
    fresh: bool = True


class Task(ABC):
    """Base of all tasks. A task is built from a :class:`TrainingConfig` and is then constant.

    Training data is addressed by step: :meth:`train_batch` is a pure function of the
    configuration and the step, so a run can be resumed at any step without replaying.
    """

    name: ClassVar[str]
    #: "accuracy" (share of right symbols or classes) or "bpc" (bits per character).
    metric: ClassVar[str] = "accuracy"
    #: Split that training evaluates on, and by which it picks the best weights.
    monitor: ClassVar[str] = "validation"
    #: Value of the metric at which training may stop early; ``None`` never stops early.
    solved_at: ClassVar[float | None] = None
    #: What :meth:`split_sizes` counts.
    unit: ClassVar[str] = "sequences"
    #: Whether evaluations also report the share of sequences that are right as a whole.
    reports_sequences: ClassVar[bool] = False

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        #: T, steps of one training sequence.
        self.steps = self.sequence_steps(config.length)

    #: R, width of an input, and S, number of classes; set by a task's constructor.
    input_size: int
    output_size: int
    #: How many entries of an input are usually not zero: 1 for symbols, which become one-hot rows.
    #: ``None`` is all of them.
    input_fan_in: float | None = None
    #: Training sequences in one pass over the data; ``None`` if samples are generated.
    samples_per_epoch: int | None = None
    #: What a reader has to know to compare an evaluation's figures, such as the number of streams.
    evaluation_note: str = ""
    #: The byte value of each symbol; ``None`` for tasks that are not on text.
    symbols: bytes | None = None
    #: Steps whose negative log-likelihood is trained on (Eq. 30).
    loss_positions: slice = slice(None)
    #: Steps whose predictions the metric counts.
    answer_positions: slice = slice(None)

    @classmethod
    @abstractmethod
    def quick(cls) -> TrainingConfig:
        """Settings for a laptop."""

    @classmethod
    @abstractmethod
    def paper(cls) -> TrainingConfig:
        """The paper's settings with its best variant."""

    @classmethod
    def sequence_steps(cls, length: int) -> int:
        """T for ``config.length``."""
        return length

    @classmethod
    def memory_steps(cls, length: int) -> int | None:
        """Steps for which the longest memory is needed, from its input to its last use.

        ``None`` where the task does not say. The delay of a layer comes on top.
        """
        return None

    @classmethod
    def shorter_lengths(cls, length: int) -> Sequence[int]:
        """The values of ``config.length`` below ``length``, largest first."""
        return range(length - 1, 0, -1)

    @abstractmethod
    def train_batch(self, step: int) -> Batch:
        """The batch of training step ``step`` (from 0), of ``config.batch_size`` sequences."""

    @abstractmethod
    def eval_batches(self, split: str) -> Iterator[Batch]:
        """The whole of ``split`` ("validation" or "test"), always the same, in order."""

    @abstractmethod
    def split_sizes(self) -> dict[str, int | None]:
        """Size of each split, in :attr:`unit`; ``None`` for one that is generated in training."""

    def facts(self) -> dict[str, str]:
        """Other facts about the data for ``mlx-tlstm data``, by name."""
        return {}

    @abstractmethod
    def sample_lines(self, batch: Batch, row: int) -> list[str]:
        """Sequence ``row`` of a batch as lines of text."""

    @property
    def train_steps(self) -> int:
        """Training steps that ``config.samples`` and ``config.epochs`` allow (the fewer)."""
        config, limits = self.config, []
        if config.samples is not None:
            limits.append(config.samples)
        if config.epochs is not None:
            expected = f"None for {self.name}, whose samples are generated ('samples' ends it),"
            finite = self.samples_per_epoch is not None
            require(finite, type(self).__name__, "epochs", expected, config.epochs)
            limits.append(config.epochs * self.samples_per_epoch)
        return max(1, min(limits) // config.batch_size)

    def checked(self, batch: Batch) -> Batch:
        """A batch of this task, in a form that MLX takes.

        MLX checks no index, and reads and writes beyond arrays.

        Raises:
            ValueError: An array is not as :class:`Batch` says.
        """
        owner = type(self).__name__
        require(isinstance(batch, Batch), owner, "batch", "a Batch of mlx_tlstm.tasks", batch)
        for name, array in (("inputs", batch.inputs), ("targets", batch.targets)):
            require(isinstance(array, np.ndarray), owner, name, "a NumPy array", array)
        inputs, targets = batch.inputs, batch.targets
        expected = f"integers [B, T], or values [B, T, {self.input_size}],"
        symbols = inputs.ndim == 2 and inputs.dtype.kind in "iu"
        values = inputs.shape[2:] == (self.input_size,) and inputs.dtype.kind == "f"
        require(inputs.size > 0 and (symbols or values), owner, "inputs", expected, inputs)
        expected = f"integers of shape {inputs.shape[:2]}, as the inputs,"
        alike = targets.shape == inputs.shape[:2] and targets.dtype.kind in "iu"
        require(alike, owner, "targets", expected, targets)
        if symbols:
            require_below(owner, "inputs", inputs, self.input_size)
        else:
            require(bool(np.isfinite(inputs).all()), owner, "inputs", "finite numbers", inputs)
        for positions in (self.loss_positions, self.answer_positions):
            require_below(owner, "targets", targets[:, positions], self.output_size)
        return batch._replace(inputs=_plain_array(inputs), targets=_plain_array(targets))


def _plain_array(array: np.ndarray) -> np.ndarray:
    """The same numbers where MLX does not take the array: flipped, of other bytes, or too long."""
    dtype = np.float64 if array.dtype == np.longdouble else array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array, dtype=dtype)


def require_complete(task: Task) -> None:
    """Raise ``ValueError`` unless a task's attributes are as :class:`Task` says."""
    owner = type(task).__name__
    for name in ("steps", "input_size", "output_size"):
        require_integer(owner, name, getattr(task, name, None))
    fan_in, solved_at = task.input_fan_in, task.solved_at
    valid = fan_in is None or (is_number(fan_in) and fan_in > 0)
    require(valid, owner, "input_fan_in", "a positive number or None", fan_in)
    valid = solved_at is None or is_number(solved_at)
    require(valid, owner, "solved_at", "a number or None", solved_at)
    require_choice(owner, "metric", task.metric, ("accuracy", "bpc"))
    require_choice(owner, "monitor", task.monitor, ("validation", "test"))
    for name in ("loss_positions", "answer_positions"):
        positions = getattr(task, name)
        require(isinstance(positions, slice), owner, name, "a slice of the steps", positions)


def require_below(owner: str, name: str, array: np.ndarray, limit: int) -> None:
    """Raise ``ValueError`` unless there are numbers in ``array``, all from 0 to below ``limit``."""
    require(array.size > 0, owner, name, "at least one in each sequence", array)
    for extreme in (array.min(), array.max()):
        inside = 0 <= extreme < limit
        require(inside, owner, name, f"from 0 to {limit - 1} each", extreme.item())

"""Base of the algorithmic tasks, whose samples are generated (Section 3.2, Appendix D.4)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from mlx_tlstm.checks import require, require_choice
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks.base import Batch, Task
from mlx_tlstm.tasks.seeding import Stream, random_generator

#: Samples in the validation split and in the test split (Appendix D.4 names 100 for test).
EVAL_SAMPLES = 100
# Not the run's seed: runs that differ in their seed are compared on the same samples.
EVAL_SEED = 0


class GeneratedTask(Task):
    """A task over a small alphabet whose last symbol, '-', delimits and pads.

    Training samples are drawn anew at each step, so none is used twice by design. The 100
    validation and 100 test samples depend on ``config.length`` alone.

    Raises:
        ValueError: ``config.data`` is given, but these tasks generate their data.
    """

    monitor = "test"
    solved_at = 1.0
    reports_sequences = True
    #: The character of each symbol, in the order of their numbers.
    alphabet: ClassVar[str]

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        owner = type(self).__name__
        require(
            config.data is None, owner, "data", "None, since samples are generated,", config.data
        )
        self.input_size = self.output_size = len(self.alphabet)
        self.input_fan_in = 1

    @abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> Batch:
        """Draw ``count`` samples."""

    def train_batch(self, step: int) -> Batch:
        rng = random_generator(self.config.seed, Stream.TRAIN, step)
        return self.sample(rng, self.config.batch_size)

    def eval_batches(self, split: str) -> Iterator[Batch]:
        require_choice(type(self).__name__, "split", split, ("validation", "test"))
        rng = random_generator(EVAL_SEED, Stream[split.upper()])
        return iter((self.sample(rng, EVAL_SAMPLES),))

    def split_sizes(self) -> dict[str, int | None]:
        return {"train": None, "validation": EVAL_SAMPLES, "test": EVAL_SAMPLES}

    def facts(self) -> dict[str, str]:
        return {"symbols": f"{self.input_size}: {self.alphabet}"}

    def sample_lines(self, batch: Batch, row: int) -> list[str]:
        return [
            f"input  {self.decode(batch.inputs[row])}",
            f"target {self.decode(batch.targets[row])}",
        ]

    @classmethod
    def encode(cls, text: str) -> np.ndarray:
        """Symbols ``[len(text)]`` int32 of a row as the paper prints it."""
        unknown = sorted(set(text) - set(cls.alphabet))
        require(not unknown, cls.__name__, "text", f"made of {cls.alphabet!r}", "".join(unknown))
        return np.array([cls.alphabet.index(character) for character in text], dtype=np.int32)

    @classmethod
    def decode(cls, symbols: np.ndarray) -> str:
        """The row of characters that symbols ``[T]`` stand for."""
        return "".join(cls.alphabet[symbol] for symbol in np.asarray(symbols).tolist())

"""Memorization of a sequence of random symbols (Section 3.2 (b), Appendix D.4)."""

from __future__ import annotations

import string

import numpy as np

from mlx_tlstm.config import BY_LAG, TrainingConfig
from mlx_tlstm.tasks.base import Batch
from mlx_tlstm.tasks.generated import GeneratedTask

SYMBOLS = string.ascii_letters + string.digits + "+/"
PAD = len(SYMBOLS)


def memorization_rows(symbols: np.ndarray) -> Batch:
    """Rows of T = 2n+2 symbols for sequences ``[B, n]``.

    For n = 5, abccb gives the input ``-abccb------`` and the target ``------abccb-``. The paper
    prints 2n+1 symbols, which would ask for the first symbol while the last is being read.
    """
    count, length = symbols.shape
    inputs = np.full((count, 2 * length + 2), PAD, dtype=np.int32)
    inputs[:, 1 : length + 1] = symbols
    targets = np.full_like(inputs, PAD)
    targets[:, length + 1 : 2 * length + 1] = symbols
    return Batch(inputs, targets)


class Memorization(GeneratedTask):
    """Recall ``config.length`` symbols, each uniform among 64; '-' is the 65th.

    Every position is trained on; the recalled symbols are the answer.
    """

    name = "memorization"
    alphabet = SYMBOLS + "-"

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.answer_positions = slice(config.length + 1, 2 * config.length + 1)

    @classmethod
    def quick(cls) -> TrainingConfig:
        return TrainingConfig(
            task=cls.name,
            variant="3d-tlstm+cn",
            depth=4,
            hidden_size=100,
            length=5,
            batch_size=15,
            samples=30_000,
            eval_every=1000,
            forget_bias=2.0,  # which keeps a third of a memory for as long as it is needed
        )

    @classmethod
    def paper(cls) -> TrainingConfig:
        return TrainingConfig(
            task=cls.name,
            variant="3d-tlstm+cn",
            depth=10,
            hidden_size=100,
            length=20,
            batch_size=15,
            samples=5_000_000,
            eval_every=1000,
            clip_norm=1.0,  # our choice: the paper names no clipping
            forget_bias=BY_LAG,  # our choice: from the paper's 1 it is learned later, if at all
        )

    @classmethod
    def sequence_steps(cls, length: int) -> int:
        return 2 * length + 2

    @classmethod
    def memory_steps(cls, length: int) -> int:
        return length

    def sample(self, rng: np.random.Generator, count: int) -> Batch:
        size = (count, self.config.length)
        return memorization_rows(rng.integers(0, len(SYMBOLS), size=size, dtype=np.int32))

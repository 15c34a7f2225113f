"""Addition of two integers, digit by digit (Section 3.2 (a), Appendix D.4)."""

from __future__ import annotations

import numpy as np

from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks.base import Batch
from mlx_tlstm.tasks.generated import GeneratedTask

DIGITS = "0123456789"
PAD = len(DIGITS)


def add_digits(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Sum of two integers given as digits, most significant first: ``[B, n]`` to ``[B, n+1]``.

    Works on digits throughout, so no length overflows. A column whose digits add up to 9 hands
    its carry on unchanged; the carry out of any column is therefore decided by the nearest column
    at or to the right of it that adds up to something else, and is 0 where there is none: then
    the last column decides, with its 9.
    """
    columns = (first + second)[:, ::-1]  # least significant first
    numbers = np.arange(columns.shape[1])
    decider = np.maximum.accumulate(np.where(columns != 9, numbers, 0), axis=1)
    deciding_sum = np.take_along_axis(columns, decider, axis=1)
    carry_out = (deciding_sum >= 10).astype(columns.dtype)
    total = np.pad(columns, ((0, 0), (0, 1)))
    total[:, 1:] += carry_out
    return total[:, ::-1] % 10


def addition_rows(first: np.ndarray, second: np.ndarray) -> Batch:
    """Rows of T = 3n+4 symbols for operands ``[B, n]`` of digits, most significant first.

    For n = 3, 123 + 900 gives the input ``-123-900-----`` and the target ``--------1023-``: the
    paper's printed target lost dashes. The sum keeps its leading zero.
    """
    count, length = first.shape
    inputs = np.full((count, 3 * length + 4), PAD, dtype=np.int32)
    inputs[:, 1 : length + 1] = first
    inputs[:, length + 2 : 2 * length + 2] = second
    targets = np.full_like(inputs, PAD)
    targets[:, 2 * length + 2 : 3 * length + 3] = add_digits(first, second)
    return Batch(inputs, targets)


class Addition(GeneratedTask):
    """Add two integers of ``config.length`` digits, uniform in 0 … 10^n - 1, zero-padded.

    Every position is trained on; the n+1 digits of the sum are the answer.
    """

    name = "addition"
    alphabet = DIGITS + "-"

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.answer_positions = slice(2 * config.length + 2, 3 * config.length + 3)

    @classmethod
    def quick(cls) -> TrainingConfig:
        return TrainingConfig(
            task=cls.name,
            variant="2d-tlstm+cn",
            depth=4,
            hidden_size=200,
            length=3,
            batch_size=15,
            samples=200_000,
            eval_every=1000,
        )

    @classmethod
    def paper(cls) -> TrainingConfig:
        return TrainingConfig(
            task=cls.name,
            variant="3d-tlstm+cn",
            depth=7,
            hidden_size=400,
            length=15,
            batch_size=15,
            samples=5_000_000,
            eval_every=1000,
            clip_norm=1.0,  # our choice: the paper names no clipping
        )

    @classmethod
    def sequence_steps(cls, length: int) -> int:
        return 3 * length + 4

    @classmethod
    def memory_steps(cls, length: int) -> int:
        return 2 * length + 2  # from the first operand's first digit to its place in the sum

    def sample(self, rng: np.random.Generator, count: int) -> Batch:
        operands = rng.integers(0, 10, size=(2, count, self.config.length), dtype=np.int32)
        return addition_rows(*operands)

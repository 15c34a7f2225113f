"""Sizes of a hidden tensor and its kernel, and what follows from them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from mlx_tlstm.checks import as_integers, is_integer, plain, require


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Tensor and kernel size of a tLSTM or tRNN, one entry per tensor axis.

    Axis ``d`` has ``tensor_size[d]`` locations p = 1 … P and ``kernel_size[d]`` taps, which read
    the locations p - floor(K/2) … p + K - 1 - floor(K/2); index 0 holds the projected input.

    Args:
        tensor_size: P of each axis.
        kernel_size: K of each axis, 2 or more.
    """

    tensor_size: tuple[int, ...]
    kernel_size: tuple[int, ...]

    @classmethod
    def checked(
        cls, owner: str, tensor_size: int | Sequence[int], kernel_size: int | Sequence[int]
    ) -> Geometry:
        """Build from what a user passed.

        Raises:
            ValueError: A size is no integer, too small, or the numbers of axes differ.
        """
        sizes = (plain(tensor_size),) if is_integer(tensor_size) else as_integers(tensor_size)
        valid = bool(sizes) and min(sizes) >= 1
        require(valid, owner, "tensor_size", "a tuple of integers of 1 or more", tensor_size)
        axes = len(sizes)
        taps = (plain(kernel_size),) * axes if is_integer(kernel_size) else as_integers(kernel_size)
        valid = bool(taps) and len(taps) == axes and min(taps) >= 2
        expected = f"an integer of 2 or more, or {axes} of them, one per tensor axis,"
        require(valid, owner, "kernel_size", expected, kernel_size)
        return cls(sizes, taps)

    @property
    def axes(self) -> int:
        """Number of tensor axes (D - 1 in the paper)."""
        return len(self.tensor_size)

    @property
    def locations(self) -> int:
        """Number of locations, the product of the tensor sizes."""
        return math.prod(self.tensor_size)

    @property
    def taps(self) -> int:
        """Number of kernel taps <K>, the product of the kernel sizes."""
        return math.prod(self.kernel_size)

    @property
    def depth(self) -> int:
        """L, the time steps that an input takes to reach the output (Eq. 9).

        With unequal axes it is the largest over the axes.
        """
        sizes = zip(self.tensor_size, self.kernel_size, strict=True)
        return max(math.ceil(2 * P / (K - K % 2)) for P, K in sizes)

    def corner(self, steps: int) -> Geometry:
        """The part of the tensor that the output after ``steps`` more steps depends on.

        That is the last locations of each axis, since a step reads floor(K/2) locations back. On
        these alone the first of the next step come out wrong, for want of those before; but they
        are none of the corner of ``steps`` - 1.
        """
        sizes = zip(self.tensor_size, self.kernel_size, strict=True)
        return Geometry(tuple(min(P, 1 + steps * (K // 2)) for P, K in sizes), self.kernel_size)

    @functools.cached_property
    def clamped_taps(self) -> tuple[np.ndarray, ...]:
        """For each axis the 0/1 array ``[P, K, P]`` that picks each tap's location.

        Taps beyond the tensor repeat its boundary (Appendix A.2).
        """
        picks = []
        for P, K in zip(self.tensor_size, self.kernel_size, strict=True):
            source = np.arange(P)[:, None] + np.arange(K)[None, :] - K // 2
            picks.append(np.eye(P, dtype=np.float32)[np.clip(source, 0, P - 1)])
        return tuple(picks)

"""What the kernels of a time step are given, for measuring and counting them."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx

from benchmarking.baselines import KERNEL_SIZE, Size
from mlx_tlstm.geometry import Geometry


@dataclasses.dataclass(frozen=True)
class Problem:
    """The sizes that a time step's kernels are given.

    Args:
        geometry: Tensor and kernel size.
        hidden_size: M.
        batch_size: B.
        dtype: Type of weights, hidden state and activations.
        memory_convolution: See :class:`mlx_tlstm.TLSTM`; likewise the norm.
        norm: ``None``, ``"channel"`` or ``"layer"``.
    """

    geometry: Geometry
    hidden_size: int
    batch_size: int
    dtype: mx.Dtype = mx.float32
    memory_convolution: bool = True
    norm: str | None = "channel"

    @property
    def rows(self) -> int:
        """B·P, rows of the hidden state."""
        return self.batch_size * self.geometry.locations

    @property
    def channels(self) -> int:
        """O, output channels of the cross-layer convolution."""
        return 4 * self.hidden_size + (self.geometry.taps if self.memory_convolution else 0)


def problem_of(size: Size, dtype: mx.Dtype, **variant: Any) -> Problem:
    """The kernels' problem in a tLSTM of this size with K = 3 on every axis."""
    geometry = Geometry(size.tensor_size, (KERNEL_SIZE,) * len(size.tensor_size))
    return Problem(geometry, size.hidden_size, size.batch_size, dtype, **variant)

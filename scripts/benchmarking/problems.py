"""What the kernels of a time step are given, for measuring and counting them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from benchmarking.baselines import KERNEL_SIZE, Size
from mlx_tlstm.checking.chains import Problem
from mlx_tlstm.geometry import Geometry


def problem_of(size: Size, dtype: mx.Dtype, **variant: Any) -> Problem:
    """The kernels' problem in a tLSTM of this size with K = 3 on every axis."""
    geometry = Geometry(size.tensor_size, (KERNEL_SIZE,) * len(size.tensor_size))
    return Problem(geometry, size.hidden_size, size.batch_size, dtype, **variant)

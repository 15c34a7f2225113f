"""The backend of kernels: a step is two launches forward and two backward."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import mlx.core as mx

from mlx_tlstm.kernels import stacking
from mlx_tlstm.kernels.activation import Tanh
from mlx_tlstm.kernels.convolution import Convolution
from mlx_tlstm.kernels.memory_update import THREADS_OF_EXAMPLE, Memory


class KernelBackend(Convolution, Memory, Tanh):
    """Kernels, of up to three tensor axes, on a GPU that they are right on."""

    plain: ClassVar[bool] = False

    def variants(self) -> tuple[KernelBackend, ...]:
        """This one, then the same with fewer threads, for a device that grants no more."""
        if self.update is None or self.update.norm != "layer":
            return (self,)
        counts = [count for count in THREADS_OF_EXAMPLE if count <= self.threads]
        return tuple(dataclasses.replace(self, threads=count) for count in counts)

    def output(self, H: mx.array) -> mx.array:
        # A copy, since a view would keep the whole state of every step alive.
        return mx.contiguous(H[(slice(None), *([-1] * self.geometry.axes))])

    def stack(self, arrays: Sequence[mx.array]) -> mx.array:
        return stacking.stack(arrays)

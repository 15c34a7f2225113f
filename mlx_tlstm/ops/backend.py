"""The plain backend: MLX's own operations, arranged so that each device does them quickly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import mlx.core as mx

from mlx_tlstm.ops.convolution import Convolution
from mlx_tlstm.ops.memory_update import Memory


class PlainBackend(Convolution, Memory):
    """Plain operations; on every device, of any number of tensor axes."""

    shrinks: ClassVar[bool] = True

    def tanh_gradient(self, d_H: mx.array, d_output: mx.array | None, H: mx.array) -> mx.array:
        d_H = self.with_output(d_H, d_output)
        return (d_H * (1 - mx.square(H.astype(mx.float32)))).astype(H.dtype)

    def stack(self, arrays: Sequence[mx.array]) -> mx.array:
        return mx.concatenate(list(arrays)).reshape(-1, *arrays[0].shape)

"""The gradient of the tRNN's tanh (Eq. 7) as a kernel; its forward pass is the convolution's."""

from __future__ import annotations

import mlx.core as mx

from mlx_tlstm.kernels.library import THREADS, Kernel, geometry_template, given
from mlx_tlstm.recurrence.contract import Backend

_TANH_BACKWARD = Kernel("tanh_backward", ("d_hidden", "d_output", "hidden"), ("d_activation",))


class Tanh(Backend):
    """The tRNN's share of the backend of kernels."""

    def tanh_gradient(self, d_H: mx.array, d_output: mx.array | None, H: mx.array) -> mx.array:
        (d_A,) = _TANH_BACKWARD(
            [d_H, given(d_output), H],
            template={
                "T": H.dtype,
                "M": H.shape[-1],
                **geometry_template(self.geometry),
            },
            groups=(-(-H.size // THREADS), 1, 1),
            threads=THREADS,
            shapes=[H.shape],
            dtypes=[H.dtype],
        )
        return d_A

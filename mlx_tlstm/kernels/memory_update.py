"""Memory-cell update as kernels (Eq. 11-13, 15-21, 25, 31): one launch a step, each way.

Shapes as in :mod:`mlx_tlstm.recurrence.contract`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_tlstm.kernels.library import Kernel, geometry_template, given
from mlx_tlstm.kernels.tiles import SIMDGROUP
from mlx_tlstm.recurrence.contract import Backend, Prepared, Step

#: Template argument NORM, as :file:`memory.h` names it.
_NORMS = {None: 0, "channel": 1, "layer": 2}

#: Simdgroups of a threadgroup, each with a row. Rows share nothing, so that a threadgroup is only
#: large enough to keep a core's scheduler busy, and small enough to spread few rows over cores.
_SIMDGROUPS = 4
#: Threads of a threadgroup that normalises a whole example: the most that every kernel may have on
#: Apple GPUs, whatever its registers, and less for a pipeline that is granted fewer.
THREADS_OF_EXAMPLE = (384, 256, 128)

_FORWARD = Kernel(
    "memory_forward",
    inputs=("activation", "cell_before", "norm_gain", "norm_bias"),
    outputs=("hidden", "cell", "far_corner", "statistics"),
)
_BACKWARD = Kernel(
    "memory_backward",
    inputs=(
        "d_hidden",
        "d_output",
        "d_cell",
        "later_carried",
        "later_kernels",
        "later_gain",
        "later_bias",
        "activation",
        "cell_before",
        "cell",
        "statistics",
        "norm_gain",
        "norm_bias",
    ),
    outputs=("d_activation", "carried", "kernels", "gain_sum", "bias_sum"),
)
_GATHER = Kernel("memory_gather", inputs=("carried", "kernels"), outputs=("d_cell_before",))


class Residuals(NamedTuple):
    """What the backward pass of a step needs besides the states."""

    A: mx.array | None  # activations [B, *P, O]; computed anew where they were not kept
    #: Mean and 1 / standard deviation in float32, ``[B, *P, 2]`` with channel normalisation,
    #: ``[B, 2]`` with layer normalisation; ``None`` without.
    statistics: mx.array | None


class MemoryGradient(NamedTuple):
    """What the backward pass of a step hands to the step before it; all float32.

    Attributes:
        carried: Gradient of what the forget gate multiplied, ``[B, *P, M]``: the convolved memory,
            or C_{t-1} itself without memory convolution.
        Q: The step's dynamic kernels, ``[B, *P, <K>]``; ``None`` without memory convolution.
        gain: Each example's gradient of the normalisation's gain over this step and those after,
            ``[B, *P, M]``, to be summed over B once a sequence; ``None`` without normalisation.
        bias: Likewise of its bias.
    """

    carried: mx.array
    Q: mx.array | None
    gain: mx.array | None
    bias: mx.array | None


@dataclasses.dataclass(frozen=True)
class Memory(Backend):
    """The memory update's share of the backend of kernels.

    Args:
        threads: Most threads of a threadgroup that normalises a whole example.
    """

    threads: int = THREADS_OF_EXAMPLE[0]

    def memory_update(
        self, A: mx.array, C_before: mx.array, prepared: Prepared
    ) -> tuple[mx.array, mx.array, mx.array, Residuals]:
        B, M, norm = A.shape[0], C_before.shape[-1], self.update.norm
        shape = {None: (2,), "channel": (*A.shape[:-1], 2), "layer": (B, 2)}[norm]
        gain, bias = given(prepared.norm_gain), given(prepared.norm_bias)
        H, C, output, statistics = _FORWARD(
            [A, C_before, gain, bias],
            **self._launch(B, {"T": A.dtype, **self._template(M)}),
            shapes=[C_before.shape, C_before.shape, (B, M), shape],
            dtypes=[A.dtype, mx.float32, A.dtype, mx.float32],
        )
        return H, C, output, Residuals(A, None if norm is None else statistics)

    def reduce(self, residuals: Residuals) -> Residuals:
        return residuals._replace(A=None)

    def restore(
        self, residuals: Residuals, A: mx.array, C_before: mx.array, prepared: Prepared
    ) -> Residuals:
        return residuals._replace(A=A)

    def memory_gradient(
        self,
        d_H: mx.array,
        d_output: mx.array | None,
        d_C: mx.array | None,
        later: MemoryGradient | None,
        step: Step,
        prepared: Prepared,
    ) -> tuple[mx.array, MemoryGradient]:
        (_, C_before), (_, C), (A, statistics) = step.before, step.after, step.residuals
        update, B, state = self.update, A.shape[0], C.shape
        template = {"T": A.dtype, **self._template(state[-1])}
        handed = later if later is not None else (None,) * 4
        optional = [given(one) for one in (d_output, d_C, *handed)]
        norm = [given(one) for one in (statistics, prepared.norm_gain, prepared.norm_bias)]
        kernels = (*state[:-1], self.geometry.taps) if update.convolve else (1,)
        sums = (1,) if update.norm is None else state
        d_A, carried, Q, gain_sum, bias_sum = _BACKWARD(
            [d_H, *optional, A, C_before, C, *norm],
            **self._launch(B, template),
            shapes=[A.shape, state, kernels, sums, sums],
            dtypes=[A.dtype, *(mx.float32,) * 4],
        )
        return d_A, MemoryGradient(
            carried,
            Q if update.convolve else None,
            None if update.norm is None else gain_sum,
            None if update.norm is None else bias_sum,
        )

    def first_gradients(self, handed: MemoryGradient) -> tuple[mx.array, Sequence[mx.array]]:
        # The backward pass of any step but the first gathers for itself.
        carried, Q, *sums = handed
        d_norm = [mx.sum(total, axis=0) for total in sums if total is not None]
        if Q is None:
            return carried, d_norm
        template = {
            "M": carried.shape[-1],
            **geometry_template(self.geometry),
            "SIMDGROUPS": _SIMDGROUPS,
        }
        (d_C_before,) = _GATHER(
            [carried, Q],
            **self._launch(carried.shape[0], template),
            shapes=[carried.shape],
            dtypes=[mx.float32],
        )
        return d_C_before, d_norm

    def _template(self, hidden_size: int) -> dict[str, Any]:
        simdgroups = _SIMDGROUPS
        if self.update.norm == "layer":
            simdgroups = min(self.threads // SIMDGROUP, self.geometry.locations)
        return {
            "M": hidden_size,
            **geometry_template(self.geometry),
            "CONVOLVE": self.update.convolve,
            "NORM": _NORMS[self.update.norm],
            "SIMDGROUPS": simdgroups,
        }

    def _launch(self, B: int, template: dict[str, Any]) -> dict[str, Any]:
        """Size of a launch: an example a threadgroup with layer normalisation, else some rows."""
        simdgroups = template["SIMDGROUPS"]
        layer = template.get("NORM") == _NORMS["layer"]
        groups = B if layer else -(-B * self.geometry.locations // simdgroups)
        return {"template": template, "groups": (groups, 1, 1), "threads": SIMDGROUP * simdgroups}

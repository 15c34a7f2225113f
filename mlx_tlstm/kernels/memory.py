"""Memory-cell update as kernels (Eq. 11-13, 15-21, 25, 31): one launch a step, each way.

Shapes: ``B`` batch, ``*P`` tensor size, ``<K>`` number of taps, ``M`` hidden channels, ``O`` output
channels. The twins in plain operations are in :mod:`mlx_tlstm.ops.memory`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels.library import Kernel, geometry_template
from mlx_tlstm.kernels.tiles import SIMDGROUP
from mlx_tlstm.ops import MemoryUpdate

#: Template argument NORM, as :file:`tlstm.h` names it.
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


def _template(update: MemoryUpdate, geometry: Geometry, threads: int) -> dict[str, Any]:
    simdgroups = _SIMDGROUPS
    if update.norm == "layer":
        simdgroups = min(threads // SIMDGROUP, geometry.locations)
    return {
        "M": update.hidden_size,
        **geometry_template(geometry),
        "CONVOLVE": update.geometry is not None,
        "NORM": _NORMS[update.norm],
        "SIMDGROUPS": simdgroups,
    }


def _launch(B: int, geometry: Geometry, template: dict[str, Any]) -> dict[str, Any]:
    """Size of a launch: an example a threadgroup with layer normalisation, else some rows."""
    simdgroups = template["SIMDGROUPS"]
    layer = template.get("NORM") == _NORMS["layer"]
    groups = B if layer else -(-B * geometry.locations // simdgroups)
    return {"template": template, "groups": (groups, 1, 1), "threads": SIMDGROUP * simdgroups}


def memory_update(
    A: mx.array,
    C_before: mx.array,
    gain: mx.array | None,
    bias: mx.array | None,
    update: MemoryUpdate,
    geometry: Geometry,
    threads: int = THREADS_OF_EXAMPLE[0],
) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
    """New hidden state and memory cell from the activations (Eq. 15-19, 31).

    Args:
        A: Activations g, i, f, o and, with memory convolution, q: ``[B, *P, 4M (+ <K>)]``.
        C_before: C_{t-1}, ``[B, *P, M]`` float32.
        gain: Gain of the normalisation, ``[*P, M]``; ``None`` without normalisation.
        bias: Bias of the normalisation, likewise.
        update: Which update; its geometry is ``None`` without memory convolution.
        geometry: The locations, always given.
        threads: Most threads of a threadgroup that normalises a whole example.

    Returns:
        H_t ``[B, *P, M]`` in A's type; C_t, likewise, in float32; the output ``[B, M]``, which is
        H_t at the last location; and the statistics, mean and 1 / standard deviation in float32,
        ``[B, *P, 2]`` (channel) or ``[B, 2]`` (layer), ``None`` without normalisation.
    """
    B, M = A.shape[0], update.hidden_size
    shape = {None: (2,), "channel": (*A.shape[:-1], 2), "layer": (B, 2)}[update.norm]
    # What a variant does not read is bound to an array at hand: a fresh one would cost a launch.
    H, C, output, statistics = _FORWARD(
        [A, C_before, _or(gain, C_before), _or(bias, C_before)],
        **_launch(B, geometry, {"T": A.dtype, **_template(update, geometry, threads)}),
        shapes=[C_before.shape, C_before.shape, (B, M), shape],
        dtypes=[A.dtype, mx.float32, A.dtype, mx.float32],
    )
    return H, C, output, None if update.norm is None else statistics


def memory_update_backward(
    d_H: mx.array,
    d_output: mx.array | None,
    d_C: mx.array | None,
    later: MemoryGradient | None,
    A: mx.array,
    C_before: mx.array,
    C: mx.array,
    statistics: mx.array | None,
    gain: mx.array | None,
    bias: mx.array | None,
    update: MemoryUpdate,
    geometry: Geometry,
    threads: int = THREADS_OF_EXAMPLE[0],
) -> tuple[mx.array, MemoryGradient]:
    """Gradient of :func:`memory_update`.

    Args:
        d_H: Gradient of H_t, ``[B, *P, M]`` float32.
        d_output: Gradient of the step's output, ``[B, M]`` float32, or ``None``.
        d_C: Gradient of C_t beside ``later``'s, ``[B, *P, M]`` float32, or ``None``.
        later: What the step after handed over; ``None`` for the last step.
        statistics: What :func:`memory_update` returned; the other arguments are what it took.

    Returns:
        The gradient of A, ``[B, *P, O]`` in A's type, and what the step before needs.
    """
    B, state = A.shape[0], C.shape
    template = {
        "T": A.dtype,
        **_template(update, geometry, threads),
        "OUTPUT": d_output is not None,
        "CELL": d_C is not None,
        "LATER": later is not None,
    }
    handed = later if later is not None else MemoryGradient(C, None, None, None)
    optional = (d_output, d_C, *handed)
    kernels = (1,) if update.geometry is None else (*state[:-1], geometry.taps)
    sums = (1,) if update.norm is None else state
    d_A, carried, Q, gain_sum, bias_sum = _BACKWARD(
        [
            d_H,
            *(_or(array, C) for array in optional),
            A,
            C_before,
            C,
            *(_or(array, C) for array in (statistics, gain, bias)),
        ],
        **_launch(B, geometry, template),
        shapes=[A.shape, state, kernels, sums, sums],
        dtypes=[A.dtype, *(mx.float32,) * 4],
    )
    return d_A, MemoryGradient(
        carried,
        None if update.geometry is None else Q,
        None if update.norm is None else gain_sum,
        None if update.norm is None else bias_sum,
    )


def memory_gradient(gradient: MemoryGradient, update: MemoryUpdate, geometry: Geometry) -> mx.array:
    """Gradient of C_{t-1}, ``[B, *P, M]`` float32, from what step t handed over.

    The initial state's needs it; the backward pass of any other step gathers for itself.
    """
    carried, Q = gradient.carried, gradient.Q
    if Q is None:
        return carried
    template = {
        "M": update.hidden_size,
        **geometry_template(geometry),
        "SIMDGROUPS": _SIMDGROUPS,
    }
    (d_C_before,) = _GATHER(
        [carried, Q],
        **_launch(carried.shape[0], geometry, template),
        shapes=[carried.shape],
        dtypes=[mx.float32],
    )
    return d_C_before


def _or(array: mx.array | None, substitute: mx.array) -> mx.array:
    return substitute if array is None else array

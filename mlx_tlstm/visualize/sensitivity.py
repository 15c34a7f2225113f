"""Measures by gradients which outputs and which locations an input reaches."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from mlx_tlstm.checks import require_integer
from mlx_tlstm.layers.base import RecurrentLayer
from mlx_tlstm.layers.layer import Layer
from mlx_tlstm.recurrence.trees import named_arrays
from mlx_tlstm.visualize.recording import require_layer

#: Numbers of all states of the copies of a sequence that are run side by side (16 MiB).
_STATE_ELEMENTS = 1 << 22


def receptive_field(layer: Layer, x: mx.array, probes: int = 4, seed: int = 0) -> np.ndarray:
    """Norm of the gradient of each output by each input, ``[T, T]``: |d y_t / d x_s| at ``[t, s]``.

    The Frobenius norm is estimated from the derivatives along random directions of x_s, and is
    exact for inputs of one channel. A zero is exact in any case: it means that no path leads from
    s to t.

    Args:
        layer: A :class:`TLSTM`, :class:`TRNN`, :class:`StackedLSTM` or :class:`Recurrent`.
        x: Inputs of one sequence, ``[T, R]``.
        probes: Number of directions.
        seed: Seeds the directions.

    Raises:
        ValueError: An argument is out of range, or a shape or dtype is wrong.
    """
    probes, seed = _checked("receptive_field", layer, x, probes, seed)

    def outputs(copies: mx.array) -> mx.array:
        return layer.trace(copies).outputs

    T = x.shape[0]
    chunk = max(1, _STATE_ELEMENTS // (T * _state_elements(layer)))
    parts = [
        _derivative_norms(outputs, x, range(start, min(T, start + chunk)), probes, seed)
        for start in range(0, T, chunk)
    ]
    return np.concatenate(parts).T


def input_reach(layer: Layer, x: mx.array, probes: int = 4, seed: int = 0) -> np.ndarray:
    """Norm of the gradient of every location's hidden state by the first input, ``[T', *P]``.

    Arguments and errors are those of :func:`receptive_field`; ``[n - 1]`` is after n steps. A cell
    of your own has one location, its output.
    """
    probes, seed = _checked("input_reach", layer, x, probes, seed)

    def hidden(copies: mx.array) -> mx.array:
        trace = layer.trace(copies)
        known = isinstance(layer, RecurrentLayer)
        return trace.states.hidden if known else trace.outputs[:, :, None]

    return _derivative_norms(hidden, x, range(1), probes, seed)[0]


def arrival_steps(reach: np.ndarray) -> np.ndarray:
    """After how many steps each location sees the first input, ``[*P]``; 0 where it never does.

    Args:
        reach: From :func:`input_reach`.
    """
    seen = np.asarray(reach) > 0
    return np.where(seen.any(axis=0), seen.argmax(axis=0) + 1, 0)


def _derivative_norms(
    function: Callable[[mx.array], mx.array], x: mx.array, inputs: range, probes: int, seed: int
) -> np.ndarray:
    """For each step s in ``inputs``, norms over the last axis of d function(x) / d x_s."""
    copies = mx.broadcast_to(x.astype(mx.float32), (len(inputs), *x.shape))
    squares = 0.0
    for key in mx.random.split(mx.random.key(seed), probes):
        # Random signs v have E[|J v|²] equal to the squared Frobenius norm of J.
        signs = 2.0 * mx.random.bernoulli(0.5, (len(inputs), x.shape[1]), key=key) - 1.0
        tangents = mx.zeros(copies.shape)
        tangents[mx.arange(len(inputs)), mx.arange(inputs.start, inputs.stop)] = signs
        derivatives = mx.jvp(function, [copies], [tangents])[1][0].astype(mx.float32)
        # In float64, so that the square of a small derivative is not a zero.
        squares = squares + (np.array(derivatives, dtype=np.float64) ** 2).sum(axis=-1)
    return np.sqrt(squares / probes)


def _state_elements(layer: Layer) -> int:
    """Numbers in the largest array of one sequence's state, which is never evaluated."""
    arrays = named_arrays("layer", "state", layer.initial_state(1))
    return max([layer.hidden_size, *(array.size for _, array in arrays)])


def _checked(
    owner: str, layer: object, x: mx.array, probes: object, seed: object
) -> tuple[int, int]:
    """``probes`` and ``seed`` as Python integers, once all arguments are checked."""
    require_layer(owner, layer)
    layer.check_input(owner, x, (2,), "[T, R]")
    return (
        require_integer(owner, "probes", probes),
        require_integer(owner, "seed", seed, minimum=0),
    )

"""The dilated GRU in float64, from its equations, loop by loop."""

from __future__ import annotations

import numpy as np
from reference import sigmoid


def gru(parameters, layer, y, h):
    """The hidden state of a layer after an input ``y`` and the hidden state ``h``."""
    W_r, W_z = np.split(parameters[f"layers.{layer}.gate_weight"], 2)
    b_r, b_z = np.split(parameters[f"layers.{layer}.gate_bias"], 2)
    W, b = (parameters[f"layers.{layer}.candidate_{kind}"] for kind in ("weight", "bias"))
    both = np.concatenate([y, h])
    r, z = sigmoid(W_r @ both + b_r), sigmoid(W_z @ both + b_z)
    candidate = np.tanh(W @ np.concatenate([y, r * h]) + b)
    return z * h + (1 - z) * candidate


def dilated_gru(parameters, x, *state):
    """Outputs ``[B, T, M]`` and the last state: of each layer l 2^l arrays ``[B, M]``."""
    B, T, _ = x.shape
    histories, start, layer = [], 0, 0
    while start < len(state):
        # All hidden states of the layer; that of time step t is number 2^l + t.
        histories.append([array.copy() for array in state[start : start + 2**layer]])
        start, layer = start + 2**layer, layer + 1
    outputs = np.zeros((B, T, state[0].shape[-1]))
    for t in range(T):
        below = x[:, t]
        for layer, history in enumerate(histories):
            past = history[2**layer + t - 2**layer]
            after = np.array([gru(parameters, layer, below[b], past[b]) for b in range(B)])
            history.append(after)
            below = after
        outputs[:, t] = below
    return outputs, *(a for layer, history in enumerate(histories) for a in history[-(2**layer) :])

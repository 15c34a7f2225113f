"""The IRNN in float64, from its equation, loop by loop."""

from __future__ import annotations

import numpy as np


def irnn(parameters, x, hidden):
    """Outputs ``[B, T, M]`` and the last hidden state ``[B, M]``."""
    B, T, _ = x.shape
    outputs, hidden = np.zeros((B, T, hidden.shape[-1])), hidden.copy()
    for b in range(B):
        for t in range(T):
            a = parameters["input_weight"] @ x[b, t] + parameters["recurrent_weight"] @ hidden[b]
            outputs[b, t] = hidden[b] = np.maximum(a + parameters["bias"], 0)
    return outputs, hidden

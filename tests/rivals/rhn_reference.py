"""The recurrent highway network in float64, from its equations, loop by loop."""

from __future__ import annotations

from itertools import count, takewhile

import numpy as np
from reference import sigmoid


def rhn(parameters, x, hidden):
    """Outputs ``[B, T, M]`` and the last hidden state ``[B, M]``."""
    B, T, _ = x.shape
    M = hidden.shape[-1]
    W_H, W_T = parameters["input_weight"][:M], parameters["input_weight"][M:]
    outputs, last = np.zeros((B, T, M)), np.zeros_like(hidden)
    for b in range(B):
        s = hidden[b]
        for t in range(T):
            for layer in takewhile(lambda n: f"layers.{n}.weight" in parameters, count()):
                R_H, R_T = np.split(parameters[f"layers.{layer}.weight"], 2)
                b_H, b_T = np.split(parameters[f"layers.{layer}.bias"], 2)
                h, transform = R_H @ s + b_H, R_T @ s + b_T
                if layer == 0:
                    h, transform = h + W_H @ x[b, t], transform + W_T @ x[b, t]
                transform = sigmoid(transform)
                carry = 1 - transform
                s = np.tanh(h) * transform + s * carry
            outputs[b, t] = s
        last[b] = s
    return outputs, last

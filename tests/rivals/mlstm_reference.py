"""The multiplicative LSTM in float64, from its equations, loop by loop."""

from __future__ import annotations

import numpy as np
from reference import sigmoid


def mlstm(parameters, x, hidden, cell):
    """Outputs ``[B, T, M]`` and the last state, each ``[B, M]``."""
    B, T, _ = x.shape
    M = hidden.shape[-1]
    W_mx, W_hx, W_ix, W_fx, W_ox = np.split(parameters["input_weight"], 5)
    W_hm, W_im, W_fm, W_om = np.split(parameters["weight"], 4)
    b_h, b_i, b_f, b_o = np.split(parameters["bias"], 4)
    outputs, hidden, cell = np.zeros((B, T, M)), hidden.copy(), cell.copy()
    for b in range(B):
        for t in range(T):
            m = (W_mx @ x[b, t]) * (parameters["hidden_weight"] @ hidden[b])
            candidate = W_hx @ x[b, t] + W_hm @ m
            i = sigmoid(W_ix @ x[b, t] + W_im @ m + b_i)
            f = sigmoid(W_fx @ x[b, t] + W_fm @ m + b_f)
            o = sigmoid(W_ox @ x[b, t] + W_om @ m + b_o)
            cell[b] = f * cell[b] + i * candidate
            outputs[b, t] = hidden[b] = np.tanh(cell[b] * o + b_h)
    return outputs, hidden, cell

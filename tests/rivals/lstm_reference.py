"""The LSTM, the stacked LSTM and the Grid LSTM in float64, from their equations, step by step."""

from __future__ import annotations

import numpy as np
from reference import sigmoid


def gates(weights, bias, vectors):
    """Candidate, input, forget and output gate, each ``[B, M]``.

    Args:
        weights: One matrix ``[M, N]`` each.
        bias: One vector ``[M]`` each.
        vectors: What they read, ``[B, N]`` together.
    """
    read = np.concatenate(vectors, axis=1)
    g, i, f, o = (read @ weight.T + b for weight, b in zip(weights, bias, strict=True))
    return np.tanh(g), sigmoid(i), sigmoid(f), sigmoid(o)


def lstm(parameters, x, hidden, cell):
    """Outputs ``[B, T, M]`` and the last state, each ``[B, M]``."""
    M = hidden.shape[-1]
    weights = parameters["weight"].reshape(4, M, -1)
    bias = parameters["bias"].reshape(4, M)
    outputs = []
    for t in range(x.shape[1]):
        g, i, f, o = gates(weights, bias, [x[:, t], hidden])
        cell = f * cell + i * g
        hidden = o * np.tanh(cell)
        outputs.append(hidden)
    return np.stack(outputs, axis=1), hidden, cell


def stacked_lstm(parameters, x, hidden, cell):
    """Outputs ``[B, T, M]`` and the last state, each ``[B, L, M]``."""
    _, L, M = hidden.shape
    hidden, cell, outputs = hidden.copy(), cell.copy(), []
    for t in range(x.shape[1]):
        below = x[:, t] @ parameters["input_weight"].T + parameters["input_bias"]
        for layer in range(L):
            weights = parameters[f"layers.{layer}.weight"].reshape(4, M, 2 * M)
            bias = parameters[f"layers.{layer}.bias"].reshape(4, M)
            g, i, f, o = gates(weights, bias, [below, hidden[:, layer]])
            cell[:, layer] = f * cell[:, layer] + i * g
            hidden[:, layer] = below = o * np.tanh(cell[:, layer])
        outputs.append(below)
    return np.stack(outputs, axis=1), hidden, cell


def grid_transform(weights, bias, vectors, memory):
    """The hidden vector and the memory behind a block, along one of its ways."""
    candidate, update, forget, output = gates(weights, bias, vectors)
    memory = forget * memory + update * candidate
    return np.tanh(output * memory), memory


def grid_lstm(parameters, x, hidden, cell):
    """Outputs ``[B, T, M]`` and the last state along time, each ``[B, L, M]``."""
    _, L, M = hidden.shape
    weights = np.concatenate([parameters["time_weight"], parameters["depth_weight"]], axis=1)
    of_time, of_depth = weights.reshape(2, 4, M, 2 * M)
    bias_of_time, bias_of_depth = parameters["bias"].reshape(2, 4, M)
    to_hidden, to_memory = parameters["input_weight"].reshape(2, M, -1)
    hidden, cell, outputs = hidden.copy(), cell.copy(), []
    for t in range(x.shape[1]):
        h, m = x[:, t] @ to_hidden.T, x[:, t] @ to_memory.T
        for layer in range(L):
            both = [hidden[:, layer].copy(), h]
            h, m = grid_transform(of_depth, bias_of_depth, both, m)
            hidden[:, layer], cell[:, layer] = grid_transform(
                of_time, bias_of_time, both, cell[:, layer]
            )
        outputs.append(h)
    return np.stack(outputs, axis=1), hidden, cell

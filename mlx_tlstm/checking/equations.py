"""The paper's equations in float64 NumPy, forward, location by location and tap by tap.

They share no code with the layers. A gradient is checked without a backward pass: along a random
direction, the outputs' change tells what the gradient has to say.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from mlx_tlstm.kernels.proof import SEQUENCES, Configuration, Trial

_EPSILON = 1e-5
#: Length of a difference, of inputs about one large in float64.
_DIFFERENCE = 1e-5

Arrays = Sequence[np.ndarray]


def sequence(
    configuration: Configuration, inputs: Arrays, steps: int, skip: int, final_step: int
) -> list[np.ndarray]:
    """Outputs ``[steps - skip, B, M]`` and the state's arrays after ``final_step`` steps.

    Args:
        configuration: Which layer.
        inputs: Of a :class:`~mlx_tlstm.kernels.proof.Trial`.
        steps: How many of the projected inputs are used; the others as in
            :func:`mlx_tlstm.recurrence.loop.run`.
    """
    is_lstm = configuration.update is not None
    width = 2 if is_lstm else 1
    projected, *rest = inputs
    state, parameters = tuple(rest[:width]), rest[width:]
    outputs, final = [], state
    for t in range(steps):
        step = _tlstm if is_lstm else _trnn
        state = step(configuration, projected[t], state, parameters)
        if t >= skip:
            outputs.append(state[0].reshape(len(state[0]), -1, state[0].shape[-1])[:, -1])
        if t + 1 == final_step:
            final = state
    return [np.stack(outputs), *final]


def _locations(configuration: Configuration) -> list[tuple[int, ...]]:
    """All locations, from 1 on each axis."""
    return list(itertools.product(*(range(1, n + 1) for n in configuration.geometry.tensor_size)))


def _reads(configuration: Configuration, p: tuple[int, ...]) -> list[tuple[tuple, tuple]]:
    """Each tap of location ``p`` and the place that it reads, p + k - floor(K / 2)."""
    K = configuration.geometry.kernel_size
    return [
        (k, tuple(i + j - n // 2 for i, j, n in zip(p, k, K, strict=True)))
        for k in itertools.product(*map(range, K))
    ]


def _at(p: tuple[int, ...]) -> tuple:
    return (slice(None), *(i - 1 for i in p))


def _activations(
    configuration: Configuration, x: np.ndarray, H: np.ndarray, W: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """Eq. 5, 22 and 24: the input stands at place 0, zeros where only some index is 0 or beyond."""
    P = configuration.geometry.tensor_size
    A = np.zeros((*H.shape[:-1], len(b))) + b
    for p in _locations(configuration):
        for k, place in _reads(configuration, p):
            if not any(place):
                A[_at(p)] += x @ W[(slice(None), *k)].T
            elif all(1 <= i <= n for i, n in zip(place, P, strict=True)):
                A[_at(p)] += H[_at(place)] @ W[(slice(None), *k)].T
    return A


def _sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def _trnn(configuration: Configuration, x: np.ndarray, state: Arrays, parameters: Arrays) -> Arrays:
    return (np.tanh(_activations(configuration, x, *state, *parameters)),)  # Eq. 7


def _tlstm(
    configuration: Configuration, x: np.ndarray, state: Arrays, parameters: Arrays
) -> Arrays:
    (H, C), (W, b, *norm), M = state, parameters, configuration.hidden_size
    update, P = configuration.update, configuration.geometry.tensor_size
    A = _activations(configuration, x, H, W, b)
    g, i, f, o, q = np.split(A, [M, 2 * M, 3 * M, 4 * M], axis=-1)
    kept = C
    if update.convolve:
        Q = np.exp(q) / np.exp(q).sum(axis=-1, keepdims=True)  # Eq. 15
        kept = np.zeros_like(C)
        for p in _locations(configuration):
            for n, (_, place) in enumerate(_reads(configuration, p)):
                nearest = tuple(min(max(j, 1), size) for j, size in zip(place, P, strict=True))
                kept[_at(p)] += Q[_at(p)][:, n, None] * C[_at(nearest)]  # Eq. 17, 25
    C = np.tanh(g) * _sigmoid(i) + kept * _sigmoid(f)  # Eq. 18
    N = C
    if norm:
        gain, bias = norm
        axes = (-1,) if update.norm == "channel" else tuple(range(1, C.ndim))
        centred = C - C.mean(axis=axes, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=axes, keepdims=True) + _EPSILON)
        N = gain * centred / deviation + bias  # Eq. 20, 21
    return np.tanh(N) * _sigmoid(o), C  # Eq. 31


def errors(
    configuration: Configuration, trial: Trial, found: list[list[np.ndarray]]
) -> dict[str, float]:
    """Largest relative error of each result of a trial, by the result's name.

    For a gradient it is the error of its product with a random direction, relative to the size that
    such products have.
    """
    inputs = [array.astype(np.float64) for array in trial.inputs]
    cotangents = [array.astype(np.float64) for array in trial.cotangents]
    direction = np.random.default_rng(3)
    worst = dict.fromkeys(configuration.names, 0.0)
    for sizes, results in zip(SEQUENCES, found, strict=True):
        steps, skip, _ = sizes

        def value(inputs: Arrays, sizes=sizes, steps=steps, skip=skip) -> float:
            values = sequence(configuration, inputs, *sizes)
            weights = (cotangents[0][: steps - skip], *cotangents[1:])
            return sum((a * b).sum() for a, b in zip(values, weights, strict=True))

        expected = sequence(configuration, inputs, *sizes)
        for name, got, wanted in zip(configuration.names, results, expected, strict=False):
            error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
            worst[name] = max(worst[name], float(error))
        gradients = results[len(expected) :]
        names = configuration.names[len(expected) :]
        for i, (name, gradient) in enumerate(zip(names, gradients, strict=True)):
            change = direction.standard_normal(inputs[i].shape)
            sides = []
            for sign in (1, -1):
                there = list(inputs)
                there[i] = inputs[i] + sign * _DIFFERENCE * change
                sides.append(value(there))
            if i == 0:
                change = change[:steps]  # later inputs are not read
            wanted = (sides[0] - sides[1]) / (2 * _DIFFERENCE)
            error = abs((gradient * change).sum() - wanted) / np.linalg.norm(gradient)
            worst[name] = max(worst[name], float(error))
    return worst

"""The paper's equations in float64 NumPy, forward and backward, as plain loops.

Written from He et al., "Wider and Deeper, Cheaper and Faster: Tensorized LSTMs for Sequence
Learning" (NIPS 2017) and not from the package, which the tests compare with it. Channels and
examples are vectorised; time, tensor locations and kernel taps are loops.

Shapes: hidden and cell [B, *P, M], x [B, T, R], outputs [B, T, M], with P the tensor size, M
the hidden (channel) size, R the input size. Output channels are ordered g, i, f, o, q.
Parameters are a dict of arrays:

    input_projection.weight [M, R]       input_projection.bias [M]
    weight [channels, *K, M]             bias [channels]
    norm.gain [*P, M]                    norm.bias [*P, M]      (only with a norm)

where channels is 4M + <K> (tLSTM), 4M (without memory convolution), M (tRNN). The stacked LSTM's
weight is [4M, 2, M]: index 0 multiplies the layer below, index 1 the layer's own past.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import ceil, prod
from types import SimpleNamespace

import numpy as np

Array = np.ndarray
Arrays = dict[str, np.ndarray]

EPSILON = 1e-5


@dataclass(frozen=True)
class Specification:
    """P and K, one entry per tensor axis, and the two options. The tRNN ignores the options."""

    tensor_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    memory_convolution: bool = True
    norm: str | None = None

    def __post_init__(self) -> None:
        # K = 1 never reads the input, and makes Eq. 9 divide by zero.
        assert len(self.tensor_size) == len(self.kernel_size)
        assert min(self.kernel_size) >= 2
        assert self.norm in (None, "channel", "layer")

    @property
    def depth(self) -> int:
        """L, the largest over the axes, so that the far corner has been reached on all of them."""
        sizes = zip(self.tensor_size, self.kernel_size, strict=True)
        return max(ceil(2 * P / (K - K % 2)) for P, K in sizes)  # Eq. 9


# One layer of a stacked LSTM is a tensor of one location that reads its input and itself.
LAYER = Specification(tensor_size=(1,), kernel_size=(2,), memory_convolution=False)


class Step(SimpleNamespace):
    """One step's H_cat [B, *(P+1), M] and H [B, *P, M]; C, its cell, is None for the tRNN.

    An LSTM's step also has G, I, F, O, C_prev, C_conv, Z and Z_hat [B, *P, M], Q [B, *P, <K>]
    (None without memory convolution) and sigma (None without norm).
    """


@dataclass
class Trace:
    """Outputs [B, T, M], the state after the T inputs (before the flush), x with the flush's zeros.

    Tensor models: steps[s] is step s+1. Stacked LSTM: steps[t * depth + l] is layer l at step t,
    as a tensor of one location.
    """

    outputs: Array
    hidden: Array
    cell: Array | None
    x: Array
    steps: list[Step]


def random_parameters(
    spec: Specification,
    input_size: int,
    hidden_size: int,
    rng: np.random.Generator,
    rnn: bool = False,
) -> Arrays:
    """Normal weights of deviation 1/sqrt(fan in) and normal biases (spec LAYER: stacked LSTM)."""
    M, K = hidden_size, spec.kernel_size
    channels = M if rnn else 4 * M + spec.memory_convolution * prod(K)
    shapes = {"input_projection.weight": (M, input_size), "input_projection.bias": (M,)}
    shapes |= {"weight": (channels, *K, M), "bias": (channels,)}
    if spec.norm and not rnn:
        shapes |= dict.fromkeys(("norm.gain", "norm.bias"), (*spec.tensor_size, M))
    parameters = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    for name in ("input_projection.weight", "weight"):
        parameters[name] /= np.sqrt(prod(shapes[name][1:]))
    return parameters


def at(p: tuple[int, ...]) -> tuple:
    """Index of the 1-based location p in a [B, *P, M] array; H_cat is indexed by p itself."""
    return (slice(None), *(p_d - 1 for p_d in p))


@cache
def taps(P: tuple[int, ...], K: tuple[int, ...]) -> list[tuple]:
    """Every location p with every tap k (from 0), which reads r = p - floor(K/2) + k.

    Each is (index of p, number of k in row-major order, index of k in the weight, index of r in
    H_cat or None where r is outside, index in C of the location nearest to r).
    """
    found = []
    for p in product(*(range(1, P_d + 1) for P_d in P)):
        for n, k in enumerate(product(*map(range, K))):
            r = [p_d - K_d // 2 + k_d for p_d, K_d, k_d in zip(p, K, k, strict=True)]
            clamped = [min(max(r_d, 1), P_d) for r_d, P_d in zip(r, P, strict=True)]
            inside = all(0 <= r_d <= P_d for r_d, P_d in zip(r, P, strict=True))
            row = (slice(None), *r) if inside else None
            found.append((at(p), n, (slice(None), *k), row, at(clamped)))
    return found


def sigmoid(a: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * a)  # no overflow


def softmax(a: Array) -> Array:
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def project(parameters: Arrays, x_t: Array) -> Array:
    """x_t W^x + b^x [B, M], the first case of Eq. 5 and 22."""
    return x_t @ parameters["input_projection.weight"].T + parameters["input_projection.bias"]


def project_backward(parameters: Arrays, gradients: Arrays, x_t: Array, d: Array) -> Array:
    gradients["input_projection.weight"] += d.T @ x_t
    gradients["input_projection.bias"] += d.sum(axis=0)
    return d @ parameters["input_projection.weight"]


def concatenate(P: tuple[int, ...], x_projected: Array, H: Array) -> Array:
    """H_cat [B, *(P+1), M]: the input at corner 0, H after it, zero where only some index is 0."""
    H_cat = np.zeros((len(H), *(P_d + 1 for P_d in P), H.shape[-1]))
    for p in np.ndindex(H_cat.shape[1:-1]):
        if not any(p):
            H_cat[(slice(None), *p)] = x_projected  # Eq. 5, 22
        elif all(p):
            H_cat[(slice(None), *p)] = H[at(p)]  # Eq. 5, 22
    return H_cat


def concatenate_backward(P: tuple[int, ...], d_H_cat: Array) -> tuple[Array, Array]:
    d_H = np.zeros((len(d_H_cat), *P, d_H_cat.shape[-1]))
    for p in np.ndindex(d_H_cat.shape[1:-1]):
        if all(p):
            d_H[at(p)] = d_H_cat[(slice(None), *p)]
    return d_H_cat[(slice(None), *(0 for _ in P))], d_H


def convolve_hidden(spec: Specification, parameters: Arrays, H_cat: Array) -> Array:
    """A [B, *P, channels] (Eq. 6, 10, 14); rows outside H_cat are zero."""
    W, b = parameters["weight"], parameters["bias"]
    A = np.zeros((len(H_cat), *spec.tensor_size, len(b))) + b
    for p, _, k, row, _ in taps(spec.tensor_size, spec.kernel_size):
        if row:
            A[p] += H_cat[row] @ W[k].T  # Eq. 24
    return A


def convolve_hidden_backward(
    spec: Specification, parameters: Arrays, gradients: Arrays, H_cat: Array, d_A: Array
) -> Array:
    d_H_cat = np.zeros_like(H_cat)
    for p, _, k, row, _ in taps(spec.tensor_size, spec.kernel_size):
        if row:
            gradients["weight"][k] += d_A[p].T @ H_cat[row]
            d_H_cat[row] += d_A[p] @ parameters["weight"][k]
    gradients["bias"] += d_A.sum(axis=tuple(range(d_A.ndim - 1)))
    return d_H_cat


def convolve_memory(spec: Specification, C: Array, Q: Array) -> Array:
    """C_conv [B, *P, M] (Eq. 17): each location's own kernel, C's boundary repeated."""
    C_conv = np.zeros_like(C)
    for p, n, _, _, c in taps(spec.tensor_size, spec.kernel_size):
        C_conv[p] += C[c] * Q[p][:, n, None]  # Eq. 16, 25
    return C_conv


def convolve_memory_backward(
    spec: Specification, C: Array, Q: Array, d_C_conv: Array
) -> tuple[Array, Array]:
    d_C, d_Q = np.zeros_like(C), np.zeros_like(Q)
    for p, n, _, _, c in taps(spec.tensor_size, spec.kernel_size):
        d_C[c] += d_C_conv[p] * Q[p][:, n, None]
        d_Q[p][:, n] += (d_C_conv[p] * C[c]).sum(axis=-1)
    return d_C, d_Q


def norm_axes(spec: Specification, C: Array) -> tuple[int, ...]:
    """Channels of one location (CN), or one example's whole tensor (LN)."""
    return (C.ndim - 1,) if spec.norm == "channel" else tuple(range(1, C.ndim))


def normalise(spec: Specification, parameters: Arrays, C: Array) -> tuple[Array, Array, Array]:
    """(Z, Z_hat, sigma), with Z = Norm(C) [B, *P, M]."""
    axes = norm_axes(spec, C)
    mu = C.mean(axis=axes, keepdims=True)
    sigma = np.sqrt(((C - mu) ** 2).mean(axis=axes, keepdims=True) + EPSILON)
    Z_hat = (C - mu) / sigma  # Eq. 21
    return Z_hat * parameters["norm.gain"] + parameters["norm.bias"], Z_hat, sigma  # Eq. 20


def normalise_backward(
    spec: Specification, parameters: Arrays, gradients: Arrays, step: Step, d_Z: Array
) -> Array:
    axes, Z_hat = norm_axes(spec, d_Z), step.Z_hat
    gradients["norm.gain"] += (d_Z * Z_hat).sum(axis=0)
    gradients["norm.bias"] += d_Z.sum(axis=0)
    d = d_Z * parameters["norm.gain"]
    along = (d * Z_hat).mean(axis=axes, keepdims=True)
    return (d - d.mean(axis=axes, keepdims=True) - Z_hat * along) / step.sigma


def tlstm_update(
    spec: Specification, parameters: Arrays, x_projected: Array, H: Array, C: Array
) -> Step:
    """One step (Eq. 14-19, 31, or 10-13 without memory convolution): x_projected [B, M]."""
    M = H.shape[-1]
    H_cat = concatenate(spec.tensor_size, x_projected, H)  # Eq. 22
    A = convolve_hidden(spec, parameters, H_cat)  # Eq. 10, 14
    A_g, A_i, A_f, A_o, A_q = np.split(A, [M, 2 * M, 3 * M, 4 * M], axis=-1)
    G, I, F, O = np.tanh(A_g), sigmoid(A_i), sigmoid(A_f), sigmoid(A_o)  # Eq. 11, 15
    Q = softmax(A_q) if spec.memory_convolution else None  # Eq. 15
    C_conv = C if Q is None else convolve_memory(spec, C, Q)  # Eq. 17
    C_new = G * I + C_conv * F  # Eq. 12, 18
    Z, Z_hat, sigma = normalise(spec, parameters, C_new) if spec.norm else (C_new, C_new, None)
    H_new = np.tanh(Z) * O  # Eq. 13, 19, 31
    return Step(
        H_cat=H_cat, H=H_new, C=C_new, G=G, I=I, F=F, O=O, Q=Q,
        C_prev=C, C_conv=C_conv, Z=Z, Z_hat=Z_hat, sigma=sigma,
    )  # fmt: skip


def tlstm_update_backward(
    spec: Specification, parameters: Arrays, gradients: Arrays, step: Step, d_H: Array, d_C: Array
) -> tuple[Array, Array, Array]:
    """Cotangents of (x_projected, H, C) before the step from those of H, C after it."""
    G, I, F, O, Q = step.G, step.I, step.F, step.O, step.Q
    d_O = d_H * np.tanh(step.Z)
    d_Z = d_H * O * (1 - np.tanh(step.Z) ** 2)
    if spec.norm:
        d_Z = normalise_backward(spec, parameters, gradients, step, d_Z)
    d_C = d_C + d_Z
    d_C_prev = d_C_conv = d_C * F
    d_A = [d_C * I * (1 - G**2), d_C * G * I * (1 - I)]
    d_A += [d_C * step.C_conv * F * (1 - F), d_O * O * (1 - O)]
    if Q is not None:
        d_C_prev, d_Q = convolve_memory_backward(spec, step.C_prev, Q, d_C_conv)
        d_A.append(Q * (d_Q - (d_Q * Q).sum(axis=-1, keepdims=True)))
    d_A = np.concatenate(d_A, axis=-1)
    d_H_cat = convolve_hidden_backward(spec, parameters, gradients, step.H_cat, d_A)
    return *concatenate_backward(spec.tensor_size, d_H_cat), d_C_prev


def trnn_update(
    spec: Specification, parameters: Arrays, x_projected: Array, H: Array, C: None
) -> Step:
    """One step of the tRNN, which has no cell: x_projected [B, M]."""
    H_cat = concatenate(spec.tensor_size, x_projected, H)  # Eq. 5, 22
    A = convolve_hidden(spec, parameters, H_cat)  # Eq. 6
    return Step(H_cat=H_cat, H=np.tanh(A), C=None)  # Eq. 7


def trnn_update_backward(
    spec: Specification, parameters: Arrays, gradients: Arrays, step: Step, d_H: Array, d_C: float
) -> tuple[Array, Array, float]:
    d_A = d_H * (1 - step.H**2)
    d_H_cat = convolve_hidden_backward(spec, parameters, gradients, step.H_cat, d_A)
    return *concatenate_backward(spec.tensor_size, d_H_cat), d_C


def unroll(update: Callable, spec, parameters, x, hidden, cell, flush) -> Trace:
    """Run a tensor model over x and, with flush, over L-1 further steps whose x is zero."""
    T, delay = x.shape[1], spec.depth - 1 if flush else 0
    x = np.concatenate([x, np.zeros((len(x), delay, x.shape[2]))], axis=1)
    H, C, steps = hidden, cell, []
    for s in range(T + delay):
        steps.append(update(spec, parameters, project(parameters, x[:, s]), H, C))
        H, C = steps[s].H, steps[s].C
    far_corner = at(spec.tensor_size)
    outputs = np.stack([step.H[far_corner] for step in steps[delay:]], axis=1)  # Eq. 8, 23
    return Trace(outputs, steps[T - 1].H, steps[T - 1].C, x, steps)


def unroll_backward(
    update_backward: Callable, spec, parameters, trace, d_outputs, d_hidden, d_cell
) -> Arrays:
    gradients = {name: np.zeros_like(value) for name, value in parameters.items()}
    T, S = d_outputs.shape[1], len(trace.steps)
    d_H, d_C, d_x = np.zeros_like(trace.hidden), 0.0, np.zeros_like(trace.x)
    for s in reversed(range(S)):
        if s == T - 1:  # the returned state, from which the flush branches off
            d_H, d_C = d_H + d_hidden, d_C + d_cell
        if s >= S - T:
            d_H[at(spec.tensor_size)] += d_outputs[:, s - (S - T)]
        d, d_H, d_C = update_backward(spec, parameters, gradients, trace.steps[s], d_H, d_C)
        d_x[:, s] = project_backward(parameters, gradients, trace.x[:, s], d)
    return gradients | {"x": d_x[:, :T], "hidden": d_H, "cell": d_C}


def tlstm_forward(
    spec: Specification, parameters: Arrays, x: Array, hidden: Array, cell: Array, flush: bool
) -> Trace:
    """The tLSTM (Eq. 14-23). With flush, output t is the far corner after step t+L-1, else t."""
    return unroll(tlstm_update, spec, parameters, x, hidden, cell, flush)


def tlstm_backward(
    spec: Specification, parameters: Arrays, trace: Trace, d_outputs, d_hidden, d_cell: Array
) -> Arrays:
    """Gradients of every parameter, "x", and the initial "hidden" and "cell".

    d_hidden and d_cell [B, *P, M] are cotangents of the returned state, d_outputs [B, T, M].
    """
    update = tlstm_update_backward
    return unroll_backward(update, spec, parameters, trace, d_outputs, d_hidden, d_cell)


def trnn_forward(
    spec: Specification, parameters: Arrays, x: Array, hidden: Array, flush: bool
) -> Trace:
    """The tRNN (Eq. 5-8); its trace has no cell. Outputs as in `tlstm_forward`."""
    return unroll(trnn_update, spec, parameters, x, hidden, None, flush)


def trnn_backward(
    spec: Specification, parameters: Arrays, trace: Trace, d_outputs: Array, d_hidden: Array
) -> Arrays:
    """Gradients of every parameter, "x" and the initial "hidden"."""
    update = trnn_update_backward
    gradients = unroll_backward(update, spec, parameters, trace, d_outputs, d_hidden, 0.0)
    del gradients["cell"]
    return gradients


def stacked_forward(depth: int, parameters: Arrays, x: Array, hidden: Array, cell: Array) -> Trace:
    """`depth` layers with shared weights, no delay (Eq. 10-13): hidden, cell [B, L, M]."""
    H, C = np.split(hidden, depth, axis=1), np.split(cell, depth, axis=1)
    steps, outputs = [], []
    for t in range(x.shape[1]):
        below = project(parameters, x[:, t])
        for layer in range(depth):
            step = tlstm_update(LAYER, parameters, below, H[layer], C[layer])
            steps.append(step)
            H[layer], C[layer], below = step.H, step.C, step.H[:, 0]
        outputs.append(below)
    state = np.concatenate(H, axis=1), np.concatenate(C, axis=1)
    return Trace(np.stack(outputs, axis=1), *state, x, steps)


def stacked_backward(
    depth: int, parameters: Arrays, trace: Trace, d_outputs, d_hidden, d_cell: Array
) -> Arrays:
    """Gradients of every parameter, "x", and the initial "hidden" and "cell" [B, L, M]."""
    gradients = {name: np.zeros_like(value) for name, value in parameters.items()}
    d_H, d_C = np.split(d_hidden, depth, axis=1), np.split(d_cell, depth, axis=1)
    d_x = np.zeros_like(trace.x)
    for t in reversed(range(trace.x.shape[1])):
        d = d_outputs[:, t]
        for layer in reversed(range(depth)):
            step, d_new = trace.steps[t * depth + layer], d_H[layer] + d[:, None]
            d, d_H[layer], d_C[layer] = tlstm_update_backward(
                LAYER, parameters, gradients, step, d_new, d_C[layer]
            )
        d_x[:, t] = project_backward(parameters, gradients, trace.x[:, t], d)
    state = {"hidden": np.concatenate(d_H, axis=1), "cell": np.concatenate(d_C, axis=1)}
    return gradients | {"x": d_x} | state

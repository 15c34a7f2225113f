"""Runs the memory kernels over a few steps, beside the float64 reference.

The reference's step is used whole: only its convolution of the hidden state is replaced, by the
activations that the kernels are given, and by a catcher of their gradient.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple
from unittest import mock

import comparison
import mlx.core as mx
import numpy as np
import reference
from layer_helpers import single
from reference import Specification

from mlx_tlstm.checks import dtype_name
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import KernelBackend, memory_update
from mlx_tlstm.recurrence.contract import MemoryUpdate, Prepared, Step

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A memory update and the steps over which it runs.

    Args:
        steps: For each step whether its output and its cell have gradients of their own.
        scale: Deviation of the activations; large ones saturate every gate.
    """

    spec: Specification
    hidden_size: int = 7
    batch: int = 2
    dtype: mx.Dtype = mx.float32
    steps: tuple[tuple[bool, bool], ...] = ((False, True), (True, False))
    scale: float = 1.0

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.spec.tensor_size, self.spec.kernel_size)

    @property
    def backend(self) -> KernelBackend:
        update = MemoryUpdate(self.spec.memory_convolution, self.spec.norm)
        return KernelBackend(self.geometry, update)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.batch, *self.spec.tensor_size, self.hidden_size)

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.spec.tensor_size))
        taps = "x".join(map(str, self.spec.kernel_size))
        memory_convolution = "" if self.spec.memory_convolution else "-noconv"
        dtype = dtype_name(self.dtype)
        scale = f"-scale{self.scale:g}" if self.scale != 1 else ""
        return (
            f"P{sizes}-K{taps}-M{self.hidden_size}-B{self.batch}-{self.spec.norm}"
            f"{memory_convolution}-{dtype}{scale}"
        )


class Arguments(NamedTuple):
    """Float64 arrays that both sides start from; ``A`` holds numbers of the case's type."""

    A: np.ndarray  # [steps, B, *P, O]
    cell: np.ndarray  # C_0 [B, *P, M]
    norm: Arrays  # norm.gain and norm.bias [*P, M]
    d_hidden: np.ndarray  # [steps, B, *P, M]
    d_output: np.ndarray  # [steps, B, M]; zero where the step has none
    d_cell: np.ndarray  # [steps, B, *P, M]; likewise


def arguments(case: Case, seed: int = 0) -> Arguments:
    rng = np.random.default_rng(seed)
    T, M = len(case.steps), case.hidden_size
    taps = case.geometry.taps if case.spec.memory_convolution else 0
    shape = case.state_shape
    A = mx.array(case.scale * rng.normal(size=(T, *shape[:-1], 4 * M + taps))).astype(case.dtype)
    norm = {}
    if case.spec.norm:
        for name in ("norm.gain", "norm.bias"):
            norm[name] = single(rng.normal(size=shape[1:]))
    d_output = single(rng.normal(size=(T, case.batch, M)))
    d_cell = single(rng.normal(size=(T, *shape)))
    for t, (output, cell) in enumerate(case.steps):
        d_output[t] *= output
        d_cell[t] *= cell
    return Arguments(
        comparison.as_float64(A),
        single(rng.normal(size=shape)),
        norm,
        single(rng.normal(size=(T, *shape))),
        d_output,
        d_cell,
    )


def _single(array: np.ndarray) -> mx.array:
    return mx.array(array.astype(np.float32))


def _prepared(given: Arguments) -> Prepared:
    none = mx.zeros((1,))  # the memory update reads no weight
    return Prepared(none, none, *(_single(array) for array in given.norm.values()))


def forward(case: Case, given: Arguments) -> list[dict[str, Any]]:
    """What the kernel makes of each step: C_before, H, C, output, residuals."""
    C, steps = _single(given.cell), []
    for A in given.A:
        A, C_before = _single(A).astype(case.dtype), C
        H, C, output, residuals = case.backend.memory_update(A, C_before, _prepared(given))
        names = {"C_before": C_before, "H": H, "C": C, "output": output}
        steps.append(names | {"residuals": residuals})
    return steps


def backward(
    case: Case, given: Arguments, steps: list[dict[str, Any]]
) -> tuple[list[mx.array], mx.array, memory_update.MemoryGradient]:
    """The kernels' gradients of each step's A, and of C_0; what the first step hands over."""
    later, d_A = None, []
    for t in range(len(steps) - 1, -1, -1):
        output, cell = case.steps[t]
        step = steps[t]
        states = (None, step["C_before"]), (step["H"], step["C"])
        gradient, later = case.backend.memory_gradient(
            _single(given.d_hidden[t]),
            _single(given.d_output[t]) if output else None,
            _single(given.d_cell[t]) if cell else None,
            later,
            Step(None, *states, step["residuals"]),
            _prepared(given),
        )
        d_A.insert(0, gradient)
    return d_A, case.backend.first_gradients(later)[0], later


def reference_steps(case: Case, given: Arguments) -> list[reference.Step]:
    C, steps = given.cell, []
    for A in given.A:
        with mock.patch.object(reference, "convolve_hidden", return_value=A):
            x = np.zeros((case.batch, case.hidden_size))
            steps.append(reference.tlstm_update(case.spec, given.norm, x, np.zeros_like(C), C))
        C = steps[-1].C
    return steps


def reference_gradients(
    case: Case, given: Arguments, steps: list[reference.Step]
) -> tuple[list[np.ndarray], np.ndarray, Arrays]:
    """Gradients of each step's A, of C_0, and of gain and bias."""
    far_corner = reference.at(case.spec.tensor_size)
    totals = {name: np.zeros_like(array) for name, array in given.norm.items()}
    d_C, d_A = np.zeros_like(given.cell), []

    def catch(spec, parameters, gradients, H_cat, gradient):
        d_A.insert(0, gradient)
        return np.zeros_like(H_cat)

    with mock.patch.object(reference, "convolve_hidden_backward", catch):
        for t in range(len(steps) - 1, -1, -1):
            d_H = given.d_hidden[t].copy()
            d_H[far_corner] += given.d_output[t]
            *_, d_C = reference.tlstm_update_backward(
                case.spec, given.norm, totals, steps[t], d_H, d_C + given.d_cell[t]
            )
    return d_A, d_C, totals


def _statistics(case: Case, step: reference.Step) -> np.ndarray:
    axes = reference.norm_axes(case.spec, step.C)
    return np.stack([step.C.mean(axis=axes), 1 / step.sigma.squeeze(axes)], axis=-1)


#: By name, what a kernel computed and what was expected.
Compared = dict[str, tuple[mx.array, np.ndarray]]
#: Norm-wise, relative, beside the rounding of a result to its type. Float32 rounds at 6e-8; some
#: tens of dependent operations a step stay below, which includes the division by a deviation.
TOLERANCE = 3e-6


def compare_forward(case: Case, given: Arguments) -> Compared:
    """Of the forward kernel."""
    pairs: Compared = {}
    steps = zip(forward(case, given), reference_steps(case, given), strict=True)
    for t, (step, expected) in enumerate(steps):
        corner = expected.H[reference.at(case.spec.tensor_size)]
        pairs |= {f"H[{t}]": (step["H"], expected.H), f"C[{t}]": (step["C"], expected.C)}
        pairs[f"output[{t}]"] = (step["output"], corner)
        if case.spec.norm:
            pairs[f"statistics[{t}]"] = (step["residuals"].statistics, _statistics(case, expected))
    return pairs


def compare_backward(case: Case, given: Arguments) -> Compared:
    """Of the backward and the gathering kernel."""
    d_A, d_C, handed = backward(case, given, forward(case, given))
    steps = reference_steps(case, given)
    expected_d_A, expected_d_C, totals = reference_gradients(case, given, steps)
    M = case.hidden_size
    pairs: Compared = {"d_C": (d_C, expected_d_C)}
    for t, (got, expected) in enumerate(zip(d_A, expected_d_A, strict=True)):
        for index, gate in enumerate("gifo"):
            part = slice(index * M, (index + 1) * M)
            pairs[f"d_{gate}[{t}]"] = (got[..., part], expected[..., part])
        # With one location every tap reads the same value, and the gradient is exactly zero.
        if case.spec.memory_convolution and case.geometry.locations > 1:
            pairs[f"d_q[{t}]"] = (got[..., 4 * M :], expected[..., 4 * M :])
    if case.spec.memory_convolution:
        pairs["Q"] = (handed.Q, steps[0].Q)
    if case.spec.norm:
        pairs["gain"] = (mx.sum(handed.gain, axis=0), totals["norm.gain"])
        pairs["bias"] = (mx.sum(handed.bias, axis=0), totals["norm.bias"])
    return pairs


def wrong(pairs: Compared) -> dict[str, float]:
    """Relative errors beyond the tolerance, by name."""
    found, expected = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
    return comparison.wrong(found, expected, TOLERANCE, rounded=True)

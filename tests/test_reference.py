"""The tests' NumPy reference is right: differences, numbers by hand, a textbook LSTM."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, prod

import numpy as np
import pytest
from comparison import assert_close, central_differences, slope
from reference import (
    LAYER,
    Arrays,
    Specification,
    Trace,
    concatenate,
    convolve_hidden,
    convolve_memory,
    normalise,
    random_parameters,
    stacked_backward,
    stacked_forward,
    tlstm_backward,
    tlstm_forward,
    trnn_backward,
    trnn_forward,
)


@dataclass(frozen=True)
class Case:
    """A model, `spec` giving L as the tensor size where it is stacked, and one set of sizes."""

    model: str
    spec: Specification
    flush: bool = True
    batch_size: int = 2
    length: int = 3
    input_size: int = 1
    hidden_size: int = 3

    def values(self, seed: int = 0) -> tuple[Arrays, Arrays]:
        """(parameters with x and the initial state, a cotangent for each output)."""
        rng = np.random.default_rng(seed)
        spec = LAYER if self.model == "stacked" else self.spec
        sizes = (self.input_size, self.hidden_size)
        values = random_parameters(spec, *sizes, rng, rnn=self.model == "trnn")
        state = (self.batch_size, *self.spec.tensor_size, self.hidden_size)
        values["x"] = rng.normal(size=(self.batch_size, self.length, self.input_size))
        values["hidden"] = rng.normal(size=state)
        if self.model != "trnn":
            values["cell"] = rng.normal(size=state)
        outputs = (self.batch_size, self.length, self.hidden_size)
        shapes = {"outputs": outputs, "hidden": state, "cell": state}
        return values, {name: rng.normal(size=shape) for name, shape in shapes.items()}

    def forward(self, values: Arrays) -> Trace:
        x, hidden, cell = values["x"], values["hidden"], values.get("cell")
        if self.model == "stacked":
            return stacked_forward(*self.spec.tensor_size, values, x, hidden, cell)
        if self.model == "trnn":
            return trnn_forward(self.spec, values, x, hidden, self.flush)
        return tlstm_forward(self.spec, values, x, hidden, cell, self.flush)

    def backward(self, values: Arrays, trace: Trace, d: Arrays) -> Arrays:
        parameters = {k: v for k, v in values.items() if k not in ("x", "hidden", "cell")}
        d_outputs, d_hidden, d_cell = d["outputs"], d["hidden"], d["cell"]
        if self.model == "stacked":
            depth = self.spec.tensor_size[0]
            return stacked_backward(depth, parameters, trace, d_outputs, d_hidden, d_cell)
        if self.model == "trnn":
            return trnn_backward(self.spec, parameters, trace, d_outputs, d_hidden)
        return tlstm_backward(self.spec, parameters, trace, d_outputs, d_hidden, d_cell)

    def loss(self, values: Arrays, d: Arrays) -> float:
        trace = self.forward(values)
        loss = (trace.outputs * d["outputs"]).sum() + (trace.hidden * d["hidden"]).sum()
        return loss if self.model == "trnn" else loss + (trace.cell * d["cell"]).sum()


def spec(tensor_size, kernel_size, memory_convolution=True, norm=None) -> Specification:
    return Specification(tensor_size, kernel_size, memory_convolution, norm)


GRADIENT_CASES = [
    Case("tlstm", spec((4,), (3,)), batch_size=1, length=2, input_size=5),
    Case("tlstm", spec((4,), (3,)), flush=False),
    Case("tlstm", spec((4,), (2,), norm="channel")),
    Case("tlstm", spec((2,), (4,), norm="layer"), input_size=4),
    Case("tlstm", spec((5,), (4,), memory_convolution=False), hidden_size=2),
    Case("tlstm", spec((1,), (3,))),
    Case("tlstm", spec((1,), (2,), memory_convolution=False, norm="layer")),
    Case("tlstm", spec((3, 2), (2, 3)), batch_size=1, length=2, hidden_size=4, input_size=5),
    Case("tlstm", spec((3, 2), (3, 2), norm="channel"), length=2, input_size=5),
    Case("tlstm", spec((2, 3), (3, 3), False, norm="layer"), length=2),
    Case("tlstm", spec((2, 3), (2, 4), norm="layer"), flush=False, length=2, hidden_size=2),
    Case("tlstm", spec((1, 1), (2, 3), norm="channel"), length=2),
    Case("tlstm", spec((3, 1, 2), (2, 3, 2)), hidden_size=2, batch_size=1, length=2),
    Case("tlstm", spec((1, 3, 2), (2, 2, 3), False, norm="channel"), length=1),
    Case("trnn", spec((4,), (3,)), input_size=5),
    Case("trnn", spec((5,), (2,)), flush=False),
    Case("trnn", spec((3, 2), (4, 3)), hidden_size=4),
    Case("trnn", spec((2, 1, 3), (2, 3, 2))),
    Case("stacked", spec((1,), (2,)), hidden_size=4),
    Case("stacked", spec((4,), (2,)), input_size=5),
]


def name(case: Case) -> str:
    s = case.spec
    sizes = f"P{'x'.join(map(str, s.tensor_size))}-K{'x'.join(map(str, s.kernel_size))}"
    parts = [case.model, sizes, s.norm or "", "" if s.memory_convolution else "no-memory"]
    return "-".join(filter(None, [*parts, "" if case.flush else "stream"]))


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=name)
def test_every_gradient_equals_central_differences(case):
    values, d = case.values()
    gradients = case.backward(values, case.forward(values), d)
    assert_close(gradients, central_differences(lambda values: case.loss(values, d), values), 1e-7)


@pytest.mark.parametrize(
    "case",
    [
        Case("tlstm", spec((2, 3, 2), (3, 3, 3), norm="channel"), length=5, hidden_size=7),
        Case("tlstm", spec((2, 3, 2), (5, 5, 5), norm="layer"), length=3, hidden_size=7),
        Case("tlstm", spec((4, 1, 3), (2, 3, 4)), length=5, hidden_size=6, input_size=8),
        Case("trnn", spec((4, 1, 3), (2, 3, 4)), length=5, hidden_size=6, input_size=8),
    ],
    ids=name,
)
def test_gradients_of_larger_models_along_random_directions(case):
    values, d = case.values()
    gradients = case.backward(values, case.forward(values), d)
    rng = np.random.default_rng(1)
    for key, value in values.items():
        direction = rng.normal(size=value.shape)
        expected = slope(lambda at, key=key: case.loss(values | {key: at}, d), value, direction)
        assert (gradients[key] * direction).sum() == pytest.approx(expected, rel=1e-6, abs=1e-8)


def by_hand(channels: list, biases: list) -> Arrays:
    """Parameters for M = R = 1, one axis: x 1/4 is projected to 1, and the flush's 0 to 1/2."""
    weights = {"weight": np.array(channels)[..., None], "bias": np.array(biases)}
    projection = {"input_projection.weight": [[2.0]], "input_projection.bias": [0.5]}
    return weights | {key: np.array(value) for key, value in projection.items()}


def test_tlstm_by_hand():
    # tanh(ln 2) = 3/5, sigmoid(±ln 3) = 3/4, 1/4 and softmax(ln 3, 0) = 3/4, 1/4.
    # Step 1, location 1 reads (1, h_1 = 1): C = 3/5 * 3/4 + 1/5 * 3/4 = 3/5, as both taps of
    # the memory kernel read c_1 = 1/5. Location 2 reads (h_1 = 1, h_2 = -1):
    # C = 3/5 * 3/4 + (3/4 * 1/5 + 1/4 * 2) * 1/4 = 49/80. H = tanh(C) / 2.
    # Step 2, location 1 reads (1/2, H_1): C = 1/3 * 3/4 + 3/5 * sigmoid(ln 3 * H_1).
    # Location 2 reads (H_1, H_2): C = tanh(ln 2 * H_1) * 3/4
    # + (3/4 * 3/5 + 1/4 * 49/80) * sigmoid(ln 3 * H_2).
    g, f, other = [log(2), 0.0], [0.0, log(3)], [0.0, 0.0]
    parameters = by_hand([g, other, f, other, other, other], [0.0, log(3), 0.0, 0.0, log(3), 0.0])
    hidden, cell = np.array([[[1.0], [-1.0]]]), np.array([[[0.2], [2.0]]])
    trace = tlstm_forward(spec((2,), (2,)), parameters, np.array([[[0.25]]]), hidden, cell, True)
    assert trace.cell.ravel() == pytest.approx([3 / 5, 49 / 80], rel=1e-14)
    assert trace.hidden.ravel() == pytest.approx(
        [0.26852478349901764, 0.27294225939673852], rel=1e-14
    )
    assert trace.steps[0].Q.ravel() == pytest.approx([0.75, 0.25, 0.75, 0.25], rel=1e-14)
    assert trace.steps[1].C.ravel() == pytest.approx(
        [0.59393254276898111, 0.48444507533187452], rel=1e-14
    )
    assert trace.outputs.ravel() == pytest.approx([0.22489822601354230], rel=1e-14)


def test_trnn_by_hand():
    # h_1 = tanh(ln 2 * x - h_1 + h_2 / 2 + 1/4), h_2 = tanh(ln 2 * h_1 - h_2 + 1/4)
    parameters = by_hand([[log(2), -1.0, 0.5]], [0.25])
    trace = trnn_forward(
        spec((2,), (3,)), parameters, np.array([[[0.25]]]), np.array([[[0.5], [1.0]]]), True
    )
    assert trace.hidden.ravel() == pytest.approx(
        [0.73666487666426592, -0.38287690807245520], rel=1e-14
    )
    assert trace.steps[1].H.ravel() == pytest.approx(
        [-0.31989464627135707, 0.81558731437084576], rel=1e-14
    )
    assert trace.outputs.ravel() == pytest.approx([0.81558731437084576], rel=1e-14)


def test_normalisation_by_hand():
    C = np.array([[[1.0, 3.0], [5.0, 11.0]]])
    gain, bias = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 6.0], [7.0, 8.0]])
    parameters = {"norm.gain": gain, "norm.bias": bias}
    # Deviations 1 and 3 about 2 and 8; over the whole tensor variance 14 about 5.
    expected = {
        "channel": np.array([[-1, 1], [-3, 3]]) / np.sqrt([[1 + 1e-5], [9 + 1e-5]]),
        "layer": np.array([[-4, -2], [0, 6]]) / np.sqrt(14 + 1e-5),
    }
    for norm, Z_hat in expected.items():
        Z = normalise(spec((2,), (3,), norm=norm), parameters, C)[0]
        assert Z[0] == pytest.approx(Z_hat * gain + bias, rel=1e-14)


@pytest.mark.parametrize("kernel_size", [(2,), (3,), (4,), (5,), (2, 3), (4, 2), (2, 3, 4)])
def test_every_tap_reads_the_padded_tensor_at_its_offset(kernel_size):
    rng = np.random.default_rng(0)
    s = spec((3, 2, 4)[: len(kernel_size)], kernel_size)
    hidden, cell = rng.normal(size=(2, 2, *s.tensor_size, 3))
    H_cat = concatenate(s.tensor_size, rng.normal(size=(2, 3)), hidden)
    corner = (slice(None), *(0 for _ in kernel_size))
    outside = np.array(H_cat)
    outside[corner] = 0
    outside[(slice(None), *(slice(1, None) for _ in kernel_size))] = 0
    assert not outside.any()  # a row with only some index 0 is zero, not a copy of the input

    def shifted(padded, k):
        parts = (slice(k_d, k_d + P) for k_d, P in zip(k, s.tensor_size, strict=True))
        return padded[(slice(None), *parts)]

    # H_cat has one row before location 1 already.
    rows = [(0, 0), *((K // 2 - 1, K - 1 - K // 2) for K in kernel_size), (0, 0)]
    edges = [(0, 0), *((K // 2, K - 1 - K // 2) for K in kernel_size), (0, 0)]
    H_padded, C_padded = np.pad(H_cat, rows), np.pad(cell, edges, mode="edge")
    for n, k in enumerate(np.ndindex(*kernel_size)):
        parameters = {"weight": np.zeros((3, *kernel_size, 3)), "bias": np.zeros(3)}
        parameters["weight"][(slice(None), *k)] = np.eye(3)
        assert (convolve_hidden(s, parameters, H_cat) == shifted(H_padded, k)).all()
        Q = np.zeros((2, *s.tensor_size, prod(kernel_size)))
        Q[..., n] = 1
        assert (convolve_memory(s, cell, Q) == shifted(C_padded, k)).all()


def test_stacked_lstm_equals_a_textbook_lstm():
    case = Case("stacked", spec((3,), (2,)), length=4, input_size=2)
    values, _ = case.values()
    trace, (W, b) = case.forward(values), (values["weight"], values["bias"])
    for n in range(case.batch_size):
        h, c = list(values["hidden"][n]), list(values["cell"][n])
        for t in range(case.length):
            below = values["input_projection.weight"] @ values["x"][n, t]
            below = below + values["input_projection.bias"]
            for layer in range(3):
                a = W[:, 0] @ below + W[:, 1] @ h[layer] + b
                g, (i, f, o) = np.tanh(a[:3]), 1 / (1 + np.exp(-a[3:].reshape(3, 3)))
                c[layer] = f * c[layer] + i * g
                h[layer] = below = o * np.tanh(c[layer])
            assert below == pytest.approx(trace.outputs[n, t], rel=1e-12)
        assert np.array(h) == pytest.approx(trace.hidden[n], rel=1e-12)
        assert np.array(c) == pytest.approx(trace.cell[n], rel=1e-12)

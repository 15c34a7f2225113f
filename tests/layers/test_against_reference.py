"""Every layer against the float64 reference: values, and the gradient of everything.

Tolerances are relative, norm-wise. Float32 rounds at 6e-8; some tens of dependent operations a
step over five to ten steps stay under 1e-5 in the values. Gradients pass the steps twice, and the
division by a small standard deviation amplifies them, hence 4e-5 there.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import reference
from comparison import (
    ROUNDING,
    as_float64,
    assert_close,
    relative_error,
    slope,
    values_and_gradients,
    weights_in_sum,
)
from layer_helpers import (
    BATCH,
    INPUT,
    STEPS,
    build,
    peak_bytes,
    random_arrays,
    to_mlx,
)
from mlx.utils import tree_flatten
from reference import Specification

from mlx_tlstm.ops import convolution, memory_update

VALUE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 4e-5

GEOMETRIES = [
    ((1,), (2,)),
    ((1,), (3,)),
    ((3,), (2,)),
    ((3,), (3,)),
    ((5,), (4,)),
    ((4,), (5,)),
    ((2,), (5,)),  # taps that reach across the whole tensor
    ((1, 1), (3, 2)),
    ((2, 4), (3, 3)),
    ((3, 2), (2, 4)),
    ((4, 1), (5, 2)),
    ((2, 3, 1), (2, 3, 4)),
    ((2, 3, 2), (3, 3, 3)),
    ((1, 2, 3), (5, 2, 2)),
]


def compare(
    kind: str,
    spec: Specification | int,
    flush: bool,
    training: bool = True,
    backend: str | None = None,
    recompute: bool = False,
) -> None:
    layer, parameters = build(kind, spec)
    layer.train(training)
    layer.cell.backend, layer.cell.recompute = backend, recompute
    rng = np.random.default_rng(1)
    state_shape = (BATCH, *layer.cell.state_shape)
    names = layer.cell.state_type._fields
    arrays = random_arrays(rng, x=(BATCH, STEPS, INPUT), **dict.fromkeys(names, state_shape))
    call = layer if flush else layer.stream

    def run(x, *state):
        y, after = call(x, layer.cell.state_type(*state))
        return [y, *after]

    values, (of_parameters, *of_inputs) = values_and_gradients(
        layer.cell, run, *to_mlx(arrays).values()
    )
    got = dict(tree_flatten(of_parameters)) | dict(zip(arrays, of_inputs, strict=True))

    cotangents = [as_float64(weights_in_sum(n, a.shape)) for n, a in enumerate(values)]
    if kind == "stacked":
        trace = reference.stacked_forward(spec, parameters, **arrays)
        expected = reference.stacked_backward(spec, parameters, trace, *cotangents)
    elif kind == "trnn":
        trace = reference.trnn_forward(spec, parameters, **arrays, flush=flush)
        expected = reference.trnn_backward(spec, parameters, trace, *cotangents)
    else:
        trace = reference.tlstm_forward(spec, parameters, **arrays, flush=flush)
        expected = reference.tlstm_backward(spec, parameters, trace, *cotangents)

    states = [getattr(trace, name) for name in names]
    assert_close(values, [trace.outputs, *states], VALUE_TOLERANCE)
    # At P = 1 the taps all read one value, and softmax's gradient cancels to rounding.
    for name in [name for name, gradient in expected.items() if np.linalg.norm(gradient) < 1e-12]:
        assert float(mx.abs(got.pop(name)).max()) < 1e-6, name
        del expected[name]
    assert_close(got, expected, GRADIENT_TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("tlstm", Specification((3,), (2,), True, None)),  # a matrix of 14 rows
        ("trnn", Specification((3,), (3,), True, None)),  # of 21
        ("stacked", 3),
    ],
)
def test_where_the_blas_is_slow(kind, spec, monkeypatch):
    """There the weights' transposes are copied, in two halves."""
    monkeypatch.setattr("mlx_tlstm.blas.is_fast", lambda: False)
    compare(kind, spec, flush=True)


@pytest.mark.parametrize("norm", [None, "channel", "layer"])
@pytest.mark.parametrize("memory_convolution", [True, False], ids=["convolved", "plain"])
@pytest.mark.parametrize(("tensor_size", "kernel_size"), GEOMETRIES)
def test_tlstm(tensor_size, kernel_size, memory_convolution, norm):
    compare("tlstm", Specification(tensor_size, kernel_size, memory_convolution, norm), flush=True)


@pytest.mark.parametrize(("tensor_size", "kernel_size"), GEOMETRIES)
def test_stream(tensor_size, kernel_size):
    compare("tlstm", Specification(tensor_size, kernel_size, True, "channel"), flush=False)


@pytest.mark.parametrize("flush", [True, False], ids=["call", "stream"])
@pytest.mark.parametrize(("tensor_size", "kernel_size"), GEOMETRIES)
def test_trnn(tensor_size, kernel_size, flush):
    compare("trnn", Specification(tensor_size, kernel_size), flush)


@pytest.mark.parametrize("norm", [None, "channel", "layer"])
@pytest.mark.parametrize("memory_convolution", [True, False], ids=["convolved", "plain"])
@pytest.mark.parametrize(("tensor_size", "kernel_size"), GEOMETRIES)
def test_equations_of_the_tlstm(tensor_size, kernel_size, memory_convolution, norm):
    spec = Specification(tensor_size, kernel_size, memory_convolution, norm)
    compare("tlstm", spec, flush=True, backend="reference")


@pytest.mark.parametrize(
    ("tensor_size", "kernel_size"), [*GEOMETRIES, ((2, 1, 2, 1), (2, 3, 3, 4))]
)
def test_equations_of_the_trnn(tensor_size, kernel_size):
    spec = Specification(tensor_size, kernel_size)
    compare("trnn", spec, flush=False, backend="reference")


@pytest.mark.parametrize("options", [{"training": False}, {"recompute": True}])
@pytest.mark.parametrize("kind", ["tlstm", "trnn"])
def test_equations_with_less_kept(kind, options):
    spec = Specification((2, 1, 2, 2), (3, 2, 2, 2), True, "layer")
    compare(kind, spec, flush=True, backend="reference", **options)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tensor_size", [(1,), (3,)])
def test_compiled_equations(tensor_size, training):
    layer, _ = build("tlstm", Specification(tensor_size, (3,), True, "channel"))
    layer.cell.backend = "reference"
    layer.train(training)
    x = mx.random.normal((BATCH, STEPS, INPUT))
    gradient = mx.grad(lambda x: mx.sum(layer(x)[0] ** 2))
    assert_close(mx.compile(gradient)(x), gradient(x), VALUE_TOLERANCE)


@pytest.mark.parametrize("kind", ["tlstm", "trnn"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_equations_in_half_precision(kind, training, dtype):
    layer, _ = build(kind, Specification((2, 3), (3, 2), True, "channel"))
    layer.cell.backend = "reference"
    layer.train(training)
    x = mx.random.normal((BATCH, STEPS, INPUT), key=mx.random.key(1))

    def gradients(dtype):
        layer.set_dtype(dtype)
        return dict(tree_flatten(values_and_gradients(layer, layer, x)[1]))

    # The weights' rounding, and that of hidden states over the steps.
    layer.set_dtype(dtype)
    expected, found = gradients(mx.float32), gradients(dtype)
    for name, gradient in expected.items():
        assert relative_error(found[name], gradient) < 16 * ROUNDING[dtype], name


def test_memory_of_the_equations_grows_with_the_number_of_steps():
    layer, _ = build("tlstm", Specification((2,), (3,), True, "channel"))
    layer.cell.backend = "reference"

    def peak(steps: int) -> int:
        x = mx.zeros((8, steps, INPUT))
        return peak_bytes(lambda: mx.eval(mx.grad(lambda x: mx.sum(layer(x)[0]))(x)))

    assert peak(4 * 40) < 5 * peak(40)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_stacked_lstm(depth):
    compare("stacked", depth, flush=True)


def test_weight_gradient_formed_in_pieces(monkeypatch):
    # As on long sequences, where the matrix of all steps would be too large.
    monkeypatch.setattr("mlx_tlstm.ops.convolution._WEIGHT_GRADIENT_ELEMENTS", 1500)
    compare("tlstm", Specification((2, 3), (3, 2), True, "channel"), flush=True)


@pytest.mark.parametrize("merged", [1, 6])
@pytest.mark.parametrize(
    ("tensor_size", "kernel_size"), [((2, 4), (3, 3)), ((2, 3, 2), (3, 2, 3)), ((3, 2), (2, 4))]
)
def test_products_of_large_tensors(monkeypatch, merged, tensor_size, kernel_size):
    # As with many locations, where not all axes are taken together in one 0/1 matrix.
    monkeypatch.setattr("mlx_tlstm.ops.memory_update._MERGED_LOCATIONS", merged)
    monkeypatch.setattr("mlx_tlstm.ops.convolution._FOLDED_LOCATIONS", merged)
    matrices = (memory_update._tap_matrices, convolution._fold_matrices)
    for made in matrices:
        made.cache_clear()
    try:
        compare("tlstm", Specification(tensor_size, kernel_size, True, "channel"), flush=True)
    finally:
        for made in matrices:
            made.cache_clear()


@pytest.mark.parametrize("kind", ["tlstm", "trnn", "stacked"])
def test_cell_steps_equal_the_stream(kind):
    spec = 3 if kind == "stacked" else Specification((2, 3), (3, 2), True, "channel")
    layer, _ = build(kind, spec)
    x = mx.random.normal((BATCH, STEPS, INPUT))
    y, after = layer.stream(x)
    state = layer.cell.initial_state(BATCH)
    for t in range(STEPS):
        state = layer.cell(x[:, t], state)
        assert mx.array_equal(layer.cell.output(state), y[:, t])
    for got, expected in zip(state, after, strict=True):
        assert mx.array_equal(got, expected)


def test_cell_gradient_equals_the_layers():
    layer, _ = build("tlstm", Specification((2, 3), (3, 2), True, "channel"))
    x = mx.random.normal((BATCH, STEPS, INPUT))

    def by_layer(x):
        return layer.stream(x)[0][:, -1].sum()

    def by_cell(x):
        state = layer.cell.initial_state(BATCH)
        for x_t in x.swapaxes(0, 1):
            state = layer.cell(x_t, state)
        return layer.cell.output(state).sum()

    assert_close(mx.grad(by_cell)(x), mx.grad(by_layer)(x), GRADIENT_TOLERANCE)


def test_trace_hands_out_every_step():
    spec = Specification((2, 3), (3, 2), True, "channel")
    layer, parameters = build("tlstm", spec)
    zeros = np.zeros((BATCH, *layer.cell.state_shape))
    arrays = random_arrays(np.random.default_rng(1), x=(BATCH, STEPS, INPUT))
    expected = reference.tlstm_forward(spec, parameters, arrays["x"], zeros, zeros, flush=True)
    trace = layer.trace(to_mlx(arrays)["x"])
    assert_close(trace.outputs, expected.outputs, VALUE_TOLERANCE)
    steps = expected.steps
    assert trace.states.hidden.shape[1] == len(steps) == STEPS + layer.delay
    for array, name in [
        (trace.states.hidden, "H"),
        (trace.states.cell, "C"),
        (trace.residuals.Q, "Q"),
        (trace.residuals.G, "G"),
    ]:
        over_time = np.stack([getattr(step, name) for step in steps], axis=1)
        assert_close(array, over_time, VALUE_TOLERANCE)


def test_second_derivatives():
    # The backward pass is made of plain operations on what the forward pass kept.
    layer, _ = build("tlstm", Specification((2,), (3,), True, "channel"))
    x = mx.random.normal((1, 3, INPUT), key=mx.random.key(1))
    direction = mx.random.normal(x.shape, key=mx.random.key(2))

    def first(x):
        return mx.sum(mx.grad(lambda x: mx.sum(mx.square(layer(x)[0])))(x) * direction)

    second = mx.sum(mx.grad(first)(x) * direction)
    assert float(second) == pytest.approx(float(slope(first, x, direction, 1e-2)), rel=1e-2)

"""Layers as modules: sizes, starting values, types, errors, cost."""

from __future__ import annotations

import inspect

import mlx.core as mx
import numpy as np
import pytest
from comparison import assert_close, relative_error
from layer_helpers import OUR_VARIANTS, cost, peak_bytes
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_map

from mlx_tlstm import (
    TLSTM,
    TRNN,
    SequenceModel,
    StackedLSTM,
    TLSTMCell,
    TRNNCell,
    make_layer,
)


def gradient(model, x):
    return nn.value_and_grad(model, lambda model, x: mx.sum(mx.square(model(x)[0])))(model, x)[1]


@pytest.mark.parametrize(
    ("tensor_size", "kernel_size", "depth"),
    [
        ((1,), 2, 1),
        ((10,), 3, 10),
        ((5,), 2, 5),
        ((3,), 4, 2),
        ((5,), 4, 3),
        ((7,), 6, 3),
        ((4, 4), (3, 3), 4),
        ((4, 7), (3, 5), 4),
        ((3, 9), (2, 4), 5),
        ((2, 3, 1), (2, 5, 3), 2),
    ],
)
def test_depth_follows_equation_9(tensor_size, kernel_size, depth):
    layer = TLSTM(3, 2, tensor_size, kernel_size)
    assert (layer.depth, layer.delay) == (depth, depth - 1)


@pytest.mark.parametrize("variant", OUR_VARIANTS)
def test_every_variant_has_its_depth_and_trains(variant):
    mx.random.seed(1)
    layer = make_layer(variant, 5, 6, depth=3)
    assert layer.depth == 3
    model = SequenceModel(layer, 4)
    x = mx.random.normal((2, 7, 5), key=mx.random.key(0))
    target = mx.random.randint(0, 4, (2, 7), key=mx.random.key(1))

    def loss(model, x, target):
        return nn.losses.cross_entropy(model(x)[0], target, reduction="mean")

    optimizer = optimizers.Adam(5e-2, bias_correction=True)
    losses = []
    for _ in range(50):
        value, gradients = nn.value_and_grad(model, loss)(model, x, target)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state, value)
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]


def test_kernel_size_in_place_of_the_variants():
    layer = make_layer("3d-tlstm", 5, 6, depth=3, kernel_size=5)
    assert layer.cell.geometry.tensor_size == (6, 6)
    assert layer.depth == 3


def test_starting_biases():
    cells = {18: TLSTMCell(3, 6, (4,), 3, forget_bias=4.0), 12: StackedLSTM(3, 6, 2, 4.0).cell}
    for fan_in, cell in cells.items():
        assert cell.bias[12:18].tolist() == [4.0] * 6
        candidate = np.abs(np.array(cell.bias[:6]))
        assert len(set(candidate)) == 6
        assert 0 < candidate.max() <= fan_in**-0.5
        assert not mx.any(cell.bias[6:12])
        assert not mx.any(cell.bias[18:])


@pytest.mark.parametrize(
    ("kind", "sizes", "taps"),
    [(TLSTM, ((4, 3), (3, 2)), 6), (TRNN, (4, 3), 3), (StackedLSTM, (3,), 2)],
)
def test_starting_weights(kind, sizes, taps):
    """Their deviation is 1 / sqrt(fan in)."""
    mx.random.seed(0)
    cell = kind(30, 40, *sizes).cell
    for weight, fan_in in ((cell.weight, 40 * taps), (cell.input_projection.weight, 30)):
        assert mx.std(weight).item() == pytest.approx(fan_in**-0.5, rel=0.1)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("variant", ["slstm", "2d-tlstm-f", "3d-tlstm+cn", "2d-trnn"])
def test_half_precision_follows_float32(variant, dtype):
    layer = make_layer(variant, 5, 24, depth=3)
    x = mx.random.normal((2, 7, 5), key=mx.random.key(0))
    expected, expected_gradient = layer(x)[0], gradient(layer, x)
    layer.set_dtype(dtype)
    y, state = layer(x)
    assert y.dtype == state.hidden.dtype == dtype
    if hasattr(state, "cell"):
        assert state.cell.dtype == mx.float32
    # float16 keeps 11 bits and bfloat16 8; errors grow over the steps.
    tolerance = 1e-2 if dtype == mx.float16 else 8e-2
    assert relative_error(y, expected) < tolerance
    got = dict(tree_flatten(gradient(layer, x)))
    for name, array in tree_flatten(expected_gradient):
        assert got[name].dtype == dtype
        assert relative_error(got[name], array) < 3 * tolerance, name


def test_frozen_parameters_get_no_gradient():
    model = SequenceModel(make_layer("2d-tlstm+cn", 5, 6, 2), 4)
    model.layer.cell.freeze(keys=["weight"], recurse=False)
    x = mx.random.normal((2, 7, 5))
    names = {name for name, _ in tree_flatten(gradient(model, x))}
    assert "layer.cell.weight" not in names
    assert {"layer.cell.bias", "layer.cell.norm.gain", "readout.weight"} <= names


def test_inside_someone_elses_model():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 5)
            self.first = TLSTM(5, 6, (2, 2), norm="channel")
            self.second = TLSTM(6, 4, 3)

        def __call__(self, symbols):
            return self.second(self.first(self.embedding(symbols))[0])

    model = Tagger()
    gradients = tree_map(mx.any, gradient(model, mx.array([[1, 2, 3], [4, 5, 6]])))
    assert all(bool(moves) for _, moves in tree_flatten(gradients))


@pytest.mark.parametrize(("training", "recompute"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("variant", OUR_VARIANTS)
def test_vmap(variant, recompute, training):
    """Of a layer, of its gradient, and the gradient through it: what a loop gives."""
    layer = make_layer(variant, 4, 5, depth=3, recompute=recompute).train(training)
    x = mx.random.normal((3, 2, 6, 4), key=mx.random.key(0))
    parameters = layer.parameters()

    def loss(parameters, x):
        layer.update(parameters)
        return mx.square(layer(x)[0]).sum()

    def assert_same(found, expected):
        layer.update(parameters)
        assert_close(found, expected, 1e-5)

    def mean(parameters, x):
        """Whose gradient of the outputs is the same for all examples."""
        layer.update(parameters)
        return layer(x)[0].mean()

    outputs = [layer(example) for example in x]
    assert_same(mx.vmap(layer)(x), tree_map(lambda *a: mx.stack(a), *outputs))
    for one in (mx.grad(mean, argnums=(0, 1)), mx.grad(loss, argnums=(0, 1))):
        each = [one(parameters, example) for example in x]
        layer.update(parameters)
        per_example = mx.vmap(one, in_axes=(None, 0))(parameters, x)
        assert_same(per_example, tree_map(lambda *a: mx.stack(a), *each))

    def total(parameters, x):
        layer.update(parameters)
        return mx.square(mx.vmap(layer)(x)[0]).sum()

    d_parameters, d_x = mx.grad(total, argnums=(0, 1))(parameters, x)
    assert_same(d_parameters, tree_map(lambda *a: sum(a), *(d for d, _ in each)))
    assert_same({"x": d_x}, {"x": mx.stack([d for _, d in each])})


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("variant", OUR_VARIANTS)
def test_gradient_through_a_directional_derivative(variant, recompute):
    """As of a Hessian times a vector: what MLX's own gradient gives, which evaluation mode has."""
    layer = make_layer(variant, 4, 5, depth=3, recompute=recompute)
    x, direction = mx.random.normal((2, 2, 6, 4), key=mx.random.key(0))

    def function(x):
        value, derivative = mx.jvp(lambda x: mx.square(layer(x)[0]), [x], [direction])
        return (value[0] + mx.sin(derivative[0])).sum()

    found = mx.grad(function)(x)
    assert_close({"x": found}, {"x": mx.grad(function)(layer.eval() and x)}, 1e-5)


def test_one_sequence_without_a_batch_axis():
    layer = make_layer("3d-tlstm+cn", 5, 6, 3)
    x = mx.random.normal((7, 5))
    y, state = layer(x)
    batched, batched_state = layer(x[None])
    assert y.shape == (7, 6)
    assert mx.array_equal(y, batched[0])
    assert state.hidden.shape == batched_state.hidden.shape == (1, 3, 3, 6)
    assert mx.array_equal(layer(x, state)[0], layer(x[None], batched_state)[0][0])


X = mx.zeros((2, 7, 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TLSTM(0, 6, 3), "'input_size' must be an integer of 1 or more but got 0"),
        (lambda: TLSTM(5, 6.0, 3), "'hidden_size' must be an integer of 1 or more but got 6.0"),
        (lambda: TLSTM(5, 6, ()), "'tensor_size' must be a tuple of integers .* but got \\(\\)"),
        (lambda: TLSTM(5, 6, (3, 0)), "'tensor_size' must be .* but got \\(3, 0\\)"),
        (lambda: TLSTM(5, 6, True), "'tensor_size' must be .* but got True"),
        (lambda: TLSTM(5, 6, 3, 1), "'kernel_size' must be an integer of 2 or more.* but got 1"),
        (lambda: TLSTM(5, 6, (3, 3), (3,)), "'kernel_size' must be .* but got \\(3,\\)"),
        (lambda: TLSTM(5, 6, (3, 3), (3, 1)), "'kernel_size' must be .* but got \\(3, 1\\)"),
        (lambda: TLSTM(5, 6, 3, norm="batch"), "'norm' must be one of None, .* but got 'batch'"),
        (lambda: TLSTM(5, 6, 3, memory_convolution=1), "'memory_convolution' must be True or"),
        (lambda: TLSTM(5, 6, 3, forget_bias=float("nan")), "'forget_bias' must be a number that"),
        (lambda: TLSTM(5, 6, 3, forget_bias=1e39), "'forget_bias' must be a number that float32"),
        (lambda: TRNNCell(5, 6, 3, 1), "\\[TRNNCell\\] 'kernel_size' must be"),
        (lambda: TRNN(5, -1, 3), "'hidden_size' must be an integer of 1 or more but got -1"),
        (lambda: StackedLSTM(5, 6, 0), "'depth' must be an integer of 1 or more but got 0"),
        (lambda: make_layer("4d", 5, 6, 3), "'variant' must be one of 'slstm', .* but got '4d'"),
        (lambda: make_layer("slstm", 5, 6, 3, kernel_size=3), "'kernel_size \\(of slstm\\)'"),
        (lambda: make_layer("2d-tlstm", 5, 6, 2.5), "'depth' must be an integer .* but got 2.5"),
        (lambda: make_layer("2d-tlstm", 5, 6, 2, kernel_size=1), "'kernel_size' must be .* got 1"),
        (lambda: SequenceModel(nn.Linear(2, 3), 4), "'layer' must be a TLSTM, TRNN, Stack"),
        (lambda: SequenceModel(TRNN(5, 6, 3), 0), "'output_size' must be .* but got 0"),
        (lambda: TRNN(5, 6, 3)(X.astype(mx.int32)), "'x' must be of a floating.* got .*int32"),
        (lambda: TRNN(5, 6, 3)(X[0, 0]), "'x' must be of shape \\[B, T, R\\] or .* got \\(5,\\)"),
        (lambda: TRNN(5, 6, 3)(X[..., :4]), "input size 5 .* but got \\(2, 7, 4\\)"),
        (lambda: TRNN(5, 6, 3)(X[:, :0]), "no empty axis but got \\(2, 0, 5\\)"),
        (lambda: TRNN(5, 6, 3)(X, mx.zeros((2, 3, 6))), "'state' must be a TRNNState but got"),
        (
            lambda: TLSTM(5, 6, 3)(X, StackedLSTM(5, 6, 3).initial_state(2)),
            "'state' must be a TLSTMState but got StackedLSTMState",
        ),
        (
            lambda: TRNN(5, 6, 3)(X, (mx.zeros((1, 3, 6)),)),
            "'state.hidden' must be of shape \\(2, 3, 6\\) but got \\(1, 3, 6\\)",
        ),
        (
            lambda: TLSTM(5, 6, 3)(X, (mx.zeros((2, 3, 6)), mx.zeros((2, 3, 6), mx.int32))),
            "'state.cell' must be of a floating-point dtype but got",
        ),
        (lambda: TLSTMCell(5, 6, 3)(X, None), "'x' must be of shape \\[B, R\\]"),
        (lambda: TLSTMCell(5, 6, 3)(X[:, 0], None), "'state' must be a TLSTMState"),
        (lambda: TLSTMCell(5, 6, 3).output(None), "'state' must be a TLSTMState but got None"),
        (
            lambda: TLSTMCell(5, 6, 3).output((mx.zeros((2, 3, 6)), mx.zeros((1, 3, 6)))),
            "'state.cell' must be of shape \\(2, 3, 6\\) but got \\(1, 3, 6\\)",
        ),
        (lambda: TLSTMCell(5, 6, 3).initial_state(0), "'batch_size' must be .* but got 0"),
    ],
)
def test_errors_name_the_argument_what_came_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def training_cost(steps):
    """Seconds and bytes of one forward and backward pass."""
    layer = TLSTM(3, 8, 3, norm="channel")
    x = mx.random.normal((4, steps, 3))
    mx.eval(x, layer.parameters())
    return cost(lambda: mx.eval(gradient(layer, x)))


def test_cost_is_linear_in_time():
    training_cost(784)  # later runs find its buffers in MLX's cache
    # Quadratic cost would be a ratio near 16. What the work needs is the least time of several
    # runs, since other processes only add. Peak memory takes one of two values, by whether the
    # weight gradient overlaps what is freed then, so that like is compared with like.
    short, long = [], []
    for _ in range(12):
        short.append(training_cost(196))
        long.append(training_cost(784))
        seconds, peaks = zip(*long, strict=True)
        short_seconds, short_peaks = zip(*short, strict=True)
        time_ratio = min(seconds) / min(short_seconds)
        memory_ratio = min(f(peaks) / f(short_peaks) for f in (min, max))
        if len(long) >= 2 and max(time_ratio, memory_ratio) <= 4.8:
            break
    assert time_ratio <= 4.8
    assert memory_ratio <= 4.8


def test_evaluation_mode_keeps_nothing():
    layer = TLSTM(3, 16, (3, 3), norm="channel")
    x = mx.random.normal((8, 200, 3))

    def run():
        mx.eval(layer(x)[0])

    training = peak_bytes(run)
    layer.eval()
    assert peak_bytes(run) < training / 5


@pytest.mark.parametrize("kind", [TLSTM, TRNN, StackedLSTM])
def test_a_layer_takes_its_cells_arguments(kind):
    signature = inspect.signature(kind)
    assert signature == inspect.signature(kind.cell_type)
    for name in signature.parameters:
        assert f"        {name}: " in kind.__doc__, name
    with pytest.raises(TypeError, match="nrom"):
        kind(3, 4, 2, nrom="channel")


def test_a_subclass_has_its_own_arguments():
    class Narrow(TLSTM):
        def __init__(self, width: int) -> None:
            super().__init__(width, width, 2)

    class Same(TLSTM):
        pass

    assert list(inspect.signature(Narrow).parameters) == ["width"]
    assert Narrow(3).cell.hidden_size == 3
    assert inspect.signature(Same) == inspect.signature(TLSTM)

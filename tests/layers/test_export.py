"""Layers in evaluation mode as files that MLX's other languages read."""

from __future__ import annotations

import mlx.core as mx
import pytest
from comparison import assert_close, values_and_gradients
from layer_helpers import OUR_VARIANTS, random_state
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm import SequenceModel, StackedLSTM, make_layer

BATCH, STEPS, INPUT, HIDDEN, CLASSES, DEPTH = 2, 5, 4, 7, 3, 3


def build(variant, dtype=mx.float32):
    mx.random.seed(5)
    model = SequenceModel(make_layer(variant, INPUT, HIDDEN, DEPTH), CLASSES)
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    return model


@pytest.fixture
def x():
    return mx.random.normal((BATCH, STEPS, INPUT), key=mx.random.key(1))


def exported(path, function, *arguments):
    mx.export_function(str(path), function, *arguments)
    return mx.import_function(str(path))(*arguments)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("variant", OUR_VARIANTS)
def test_exported_model(variant, dtype, x, tmp_path):
    """Without and with a state, which goes in and comes out array by array."""
    model = build(variant, dtype).eval()
    kind = model.layer.cell.state_type
    expected, state = model(x)

    def first(x):
        logits, state = model(x)
        return logits, *state

    def next_call(x, *state):
        logits, state = model(x, kind(*state))
        return logits, *state

    assert_close(exported(tmp_path / "first.mlxfn", first, x), [expected, *state], 1e-6)
    expected, after = model(x, state)
    found = exported(tmp_path / "next.mlxfn", next_call, x, *state)
    assert_close(found, [expected, *after], 1e-6)


@pytest.mark.parametrize("variant", ["slstm", "3d-tlstm+cn", "2d-trnn"])
def test_exported_parts(variant, x, tmp_path):
    """A layer, its stream and one step of its cell; weights as inputs too."""
    layer = build(variant).layer.eval()
    kind, state = layer.cell.state_type, layer.cell.initial_state(BATCH)
    weights = layer.parameters()

    def with_weights(weights, x):
        layer.update(weights)
        return layer(x)[0]

    functions = {
        "call": (lambda x: layer(x)[0], x),
        "sequence": (lambda x: layer(x)[0], x[0]),
        "stream": (lambda x: layer.stream(x)[0], x),
        "cell": (lambda x, *state: tuple(layer.cell(x, kind(*state))), x[:, 0], *state),
        "output": (lambda *state: layer.cell.output(kind(*state)), *state),
    }
    for name, (function, *arguments) in functions.items():
        expected = function(*arguments)
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = exported(tmp_path / f"{name}.mlxfn", function, *arguments)
        assert_close({name: found}, {name: expected}, 1e-6)
    names, arrays = zip(*tree_flatten(weights), strict=True)
    layer_of = lambda x, *arrays: with_weights(nn.utils.tree_unflatten(list(zip(names, arrays))), x)  # noqa: E731, B905
    (found,) = exported(tmp_path / "weights.mlxfn", layer_of, x, *arrays)
    layer.update(weights)
    assert_close(found, layer(x)[0], 1e-6)


def test_training_mode_is_refused(x, tmp_path):
    layer = StackedLSTM(INPUT, HIDDEN, DEPTH)
    with pytest.raises(ValueError, match="Unable to serialize primitive"):
        mx.export_function(str(tmp_path / "layer.mlxfn"), lambda x: layer(x)[0], x)


@pytest.mark.parametrize("variant", OUR_VARIANTS)
def test_gradients_in_evaluation_mode(variant, x):
    """MLX's own gradient of the plain steps is the one that training forms."""
    model = build(variant)
    state = random_state(model.layer.cell, BATCH)
    expected = values_and_gradients(model, model, x, state)
    model.eval()
    assert_close(values_and_gradients(model, model, x, state), expected, 1e-5)

"""Other modules in the place of the input projection and the read-out, as users put them there."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from comparison import assert_close, values_and_gradients
from layer_helpers import OUR_VARIANTS
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from mlx_tlstm import ModelMetadata, SequenceModel, StreamingSession, make_layer
from mlx_tlstm.models.generation import generate
from mlx_tlstm.models.sequence import class_count
from mlx_tlstm.tasks import TASKS, make_task
from mlx_tlstm.training import build_model, evaluate
from mlx_tlstm.training.origin import task_of
from mlx_tlstm.visualize import receptive_field, record

BATCH, STEPS, INPUT, HIDDEN, CLASSES, DEPTH = 2, 6, 32, 64, 32, 3


class LoRALinear(nn.Module):
    """A linear layer with a low-rank addition, as adapters wrap it: the layer is one level down."""

    def __init__(self, linear: nn.Module, rank: int = 2, scale: float = 3.0) -> None:
        super().__init__()
        output_size, input_size = linear.weight.shape
        self.linear = linear
        self.scale = scale
        self.lora_a = mx.random.normal((input_size, rank)) / math.sqrt(input_size)
        self.lora_b = mx.random.normal((rank, output_size))

    def __call__(self, x: mx.array) -> mx.array:
        change = (x @ self.lora_a) @ self.lora_b
        return self.linear(x) + (self.scale * change).astype(x.dtype)


class Shifted(nn.Linear):
    """A linear layer of a user's own, whose value at zero is not its bias."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x) - 0.25


def with_bias(linear):
    linear.bias = mx.random.normal(linear.bias.shape)
    return linear


#: By name, what makes a module in the place of a linear layer.
REPLACEMENTS = {
    "plain": with_bias,
    "lora": lambda linear: LoRALinear(with_bias(linear)),
    "no-bias": lambda linear: nn.Linear(*linear.weight.shape[::-1], bias=False),
    "lora-no-bias": lambda linear: LoRALinear(nn.Linear(*linear.weight.shape[::-1], bias=False)),
    "network": lambda linear: nn.Sequential(
        nn.Linear(linear.weight.shape[1], 5), nn.Tanh(), nn.Linear(5, linear.weight.shape[0])
    ),
    "subclass": lambda linear: Shifted(*linear.weight.shape[::-1]),
    "normed": lambda linear: nn.Sequential(with_bias(linear), nn.LayerNorm(linear.weight.shape[0])),
    "quantized": lambda linear: with_bias(linear).to_quantized(group_size=32, bits=8),
    "quantized-no-bias": lambda linear: nn.Linear(
        *linear.weight.shape[::-1], bias=False
    ).to_quantized(group_size=32, bits=4),
}


def build(variant="2d-tlstm+cn", replacement="lora", dtype="float32"):
    mx.random.seed(3)
    model = SequenceModel(make_layer(variant, INPUT, HIDDEN, DEPTH), CLASSES)
    replace = REPLACEMENTS[replacement]
    model.layer.cell.input_projection = replace(model.layer.cell.input_projection)
    model.readout = replace(model.readout)
    model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())
    return model


def inputs(dtype=mx.float32):
    return mx.random.normal((BATCH, STEPS, INPUT), key=mx.random.key(7)).astype(dtype)


def by_padding(layer, x):
    """What a call gives, from a stream over x with ``delay`` zero inputs after it."""
    zeros = mx.zeros((BATCH, layer.delay, INPUT), x.dtype)
    y, _ = layer.stream(mx.concatenate([x, zeros], axis=1))
    return y[:, layer.delay :]


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("variant", ["2d-tlstm+cn", "3d-tlstm", "2d-trnn", "slstm"])
def test_flush_projects_zeros_with_the_module(variant, replacement):
    layer = build(variant, replacement).layer
    x = inputs()
    y, state = layer(x)
    assert_close([y, *state], [by_padding(layer, x), *layer.stream(x)[1]], 1e-6)
    assert_close(layer.trace(x).outputs, y, 1e-6)
    outputs, kept = layer.cell.project_flushed(x.swapaxes(0, 1), 2), layer.cell.project(x)
    assert_close(outputs[:STEPS], kept.swapaxes(0, 1), 1e-6)
    assert outputs.shape == (STEPS + 2, BATCH, HIDDEN)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("replacement", [n for n in REPLACEMENTS if "quantized" not in n])
def test_gradients_are_those_over_padded_inputs(replacement, recompute, training):
    model = build(replacement=replacement)
    model.layer.cell.recompute = recompute
    model.train(training)
    x = inputs()
    found = values_and_gradients(model, lambda x: model(x)[0], x)
    padded = lambda x: model.readout(by_padding(model.layer, x))  # noqa: E731
    assert_close(found, values_and_gradients(model, padded, x), 1e-5)
    for name, gradient in tree_flatten(found[1]):
        assert mx.abs(gradient).max().item() > 0, name


@pytest.mark.parametrize("replacement", ["quantized", "quantized-no-bias"])
def test_what_is_left_of_a_quantized_model_trains(replacement):
    model = build(replacement=replacement)
    model.layer.cell.input_projection.freeze()
    model.readout.freeze()
    x = inputs()
    found = values_and_gradients(model, lambda x: model.layer(x)[0], x)
    expected = values_and_gradients(model, lambda x: by_padding(model.layer, x), x)
    assert_close(found, expected, 1e-5)
    assert set(dict(tree_flatten(found[1][0]))) == {
        "layer.cell.weight", "layer.cell.bias", "layer.cell.norm.gain", "layer.cell.norm.bias"
    }  # fmt: skip


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_streaming_and_generation(replacement):
    model = build(replacement=replacement).eval()
    x = inputs()
    expected, _ = model(x)
    session = StreamingSession(model)
    outputs = [session.push(x[:, t]) for t in range(STEPS)]
    outputs = [y for y in outputs if y is not None] + session.flush()
    assert_close(mx.stack(outputs, axis=1), expected, 1e-5)
    assert class_count(model) == CLASSES
    symbols = [3, 9, 4]
    for symbol in generate(model, symbols[:3], 4, temperature=0):
        logits, _ = model(mx.eye(INPUT)[mx.array(symbols)][None])
        assert symbol == mx.argmax(logits[0, -1]).item()
        symbols.append(symbol)


@pytest.mark.parametrize("replacement", ["lora", "no-bias", "network"])
def test_pictures_and_half_types(replacement):
    model = build(replacement=replacement)
    x = inputs()[0]
    assert receptive_field(model.layer, x).shape == (STEPS, STEPS)
    assert record(model.layer, x).steps == STEPS + model.layer.delay
    model.set_dtype(mx.bfloat16)
    # An adapter may stay in float32; the recurrence has one type.
    projection = model.layer.cell.input_projection
    projection.set_dtype(mx.float32)
    y, state = model.layer(inputs(mx.bfloat16))
    assert (y.dtype, state.hidden.dtype) == (mx.bfloat16, mx.bfloat16)
    assert mx.isfinite(y).all().item()


@pytest.mark.parametrize("replacement", ["lora", "no-bias", "network"])
def test_evaluation(replacement):
    config = TASKS["memorization"].quick().replace(length=2, depth=2, hidden_size=6)
    model = build_model(config, make_task(config))
    model.metadata = ModelMetadata(training=config)
    replace = REPLACEMENTS[replacement]
    model.layer.cell.input_projection = replace(model.layer.cell.input_projection)
    model.readout = replace(model.readout)
    metrics = evaluate(model, task_of(model), "test", batch_size=np.int64(7))
    expected = evaluate(model, task_of(model), "test")["loss"]
    assert metrics["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_wider_readout_has_its_own_number_of_classes():
    model = build()
    model.readout = nn.Sequential(nn.Linear(HIDDEN, 9), nn.ReLU(), nn.Linear(9, 5, bias=False))
    assert class_count(model) == 5
    message = r"'model' must be one of as many classes as inputs \(32\) but got 5"
    with pytest.raises(ValueError, match=message):
        generate(model, [0], 1)


def test_dropout_before_the_recurrence_differs_from_step_to_step():
    layer = build().layer
    layer.cell.input_projection = nn.Sequential(
        with_bias(nn.Linear(INPUT, HIDDEN)), nn.Dropout(0.5)
    )
    projected = layer.cell.project_flushed(inputs().swapaxes(0, 1), 2)
    assert not mx.array_equal(projected[-1], projected[-2])


@pytest.mark.parametrize("variant", OUR_VARIANTS)
def test_a_module_of_another_width_is_refused(variant):
    layer = make_layer(variant, INPUT, 6, DEPTH)
    layer.cell.input_projection = nn.Linear(INPUT, 7)
    message = r"'input_projection' must be a module that makes \(6, 2, 6\) of .* got \(6, 2, 7\)"
    with pytest.raises(ValueError, match=message):
        layer.stream(inputs())
    with pytest.raises(ValueError, match=r"\[.*Cell\] 'input_projection' must be a module"):
        layer.cell(inputs()[:, 0], layer.cell.initial_state(BATCH))


def test_the_usual_flush_takes_no_product(monkeypatch):
    layer = build(replacement="plain").layer
    rows = []
    call = nn.Linear.__call__

    def counting(self, x):
        rows.append(x.shape[0])
        return call(self, x)

    monkeypatch.setattr(nn.Linear, "__call__", counting)
    layer(inputs())
    assert rows == [STEPS]


def test_frozen_modules_keep_their_weights():
    model = build()
    model.layer.cell.input_projection.linear.freeze()
    x = inputs()
    _, gradients = nn.value_and_grad(model, lambda x: mx.sum(model(x)[0]))(x)
    found = gradients["layer"]["cell"]["input_projection"]
    assert set(dict(tree_flatten(found))) == {"lora_a", "lora_b"}
    assert all(mx.isfinite(a).all().item() for _, a in tree_flatten(tree_map(mx.array, found)))

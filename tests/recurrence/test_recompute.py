"""Recomputing the activations in the backward pass: the same gradients, with less memory."""

import mlx.core as mx
import pytest
from comparison import assert_close, values_and_gradients
from kernel_devices import needs_compiler
from layer_helpers import OUR_VARIANTS, peak_bytes, random_state
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm import TLSTM, VARIANTS, make_layer
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.trainer import Trainer


@pytest.mark.parametrize("variant", OUR_VARIANTS)
def test_recomputed_gradients_are_the_same_to_the_bit(variant):
    mx.random.seed(3)
    layer = make_layer(variant, 4, 7, 3)
    x = mx.random.normal((2, 5, 4))
    state = random_state(layer.cell, 2)
    expected = values_and_gradients(layer, layer, x, state)
    layer.cell.recompute = True
    assert_close(values_and_gradients(layer, layer, x, state), expected)
    for name, gradient in tree_flatten(expected[1]):
        assert mx.any(gradient != 0), name


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loss_that_evaluates(variant, recompute):
    x, depth = mx.random.normal((2, 5, 4)), VARIANTS[variant].settings.get("depth", 3)

    def gradient(evaluate):
        mx.random.seed(3)
        layer = make_layer(variant, 4, 8, depth, recompute=recompute)

        def loss(layer, x):
            value = layer(x)[0].square().sum()
            return value + value.item() if evaluate else value

        return nn.value_and_grad(layer, loss)(layer, x)[1]

    assert_close(gradient(True), gradient(False))


def test_recomputing_saves_memory(monkeypatch):
    # The states are 2M numbers a location and step, the activations 7M more. The rows from which
    # the weight gradient is formed, of one step at a time here, would hide both.
    monkeypatch.setattr("mlx_tlstm.ops.convolution._WEIGHT_GRADIENT_ELEMENTS", 1)
    layer = TLSTM(4, 24, (4, 5), norm="channel")
    x = mx.random.normal((3, 60, 4))

    def run():
        mx.eval(values_and_gradients(layer, layer, x, layer.cell.initial_state(3)))

    kept = peak_bytes(run)
    layer.cell.recompute = True
    assert peak_bytes(run) < kept / 2


@needs_compiler
@pytest.mark.parametrize("memory_convolution", [True, False])
def test_a_compiled_backward_pass_computes_the_gates_anew(memory_convolution, monkeypatch):
    """They are a third of what the forward pass would keep, and would be shared by mx.compile."""
    x = mx.random.normal((3, 200, 4))

    def peak():
        layer = TLSTM(4, 24, (4, 5), memory_convolution=memory_convolution)
        parameters = layer.parameters()

        def loss(parameters):
            layer.update(parameters)
            return layer(x)[0].square().sum()

        gradient = mx.compile(mx.grad(loss))

        mx.eval(gradient(parameters))  # compiles it
        return peak_bytes(lambda: mx.eval(gradient(parameters)))

    anew = peak()
    monkeypatch.setattr("mlx_tlstm.ops.memory_update.after", lambda arrays, _: arrays)
    assert anew < 0.92 * peak()


def test_recompute_is_a_flag():
    with pytest.raises(ValueError, match=r"'recompute' must be True or False but got 1"):
        TLSTM(4, 7, (3,), recompute=1)


def test_a_run_that_recomputes_learns_the_same():
    task = TASKS["addition"].quick().replace(length=2, hidden_size=8, depth=2, samples=45)
    weights = []
    for recompute in (False, True):
        trainer = Trainer(task.replace(recompute=recompute))
        assert trainer.model.layer.cell.recompute is recompute
        for _ in range(3):
            trainer.train_step()
        weights.append(trainer.weights)
    assert_close(weights[1], weights[0])

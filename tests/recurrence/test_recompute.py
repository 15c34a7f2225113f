"""Recomputing the activations in the backward pass: the same gradients, with less memory."""

import mlx.core as mx
import pytest
from layer_helpers import peak_bytes
from mlx.utils import tree_flatten

from mlx_tlstm import TLSTM, VARIANTS, make_layer
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.trainer import Trainer


def loss_and_gradients(layer, x, state, cotangent):
    def loss(parameters, x, state):
        layer.update(parameters)
        y, final = layer(x, state)
        return (y * cotangent).sum() + sum((array * array).sum() for array in final)

    parameters = layer.parameters()
    value, gradients = mx.value_and_grad(loss, argnums=(0, 1, 2))(parameters, x, state)
    layer.update(parameters)
    mx.eval(value, gradients)
    return value, gradients


@pytest.mark.parametrize("variant", VARIANTS)
def test_recomputed_gradients_are_the_same_to_the_bit(variant):
    mx.random.seed(3)
    layer = make_layer(variant, 4, 7, 3)
    x, cotangent = mx.random.normal((2, 5, 4)), mx.random.normal((2, 5, 7))
    state = layer.cell.state_type(
        *(mx.random.normal(array.shape) for array in layer.cell.initial_state(2))
    )
    value, gradients = loss_and_gradients(layer, x, state, cotangent)
    layer.cell.recompute = True
    again, recomputed = loss_and_gradients(layer, x, state, cotangent)
    assert value.item() == again.item()
    pairs = zip(tree_flatten(gradients), tree_flatten(recomputed), strict=True)
    for (name, kept), (_, computed) in pairs:
        assert mx.any(kept != 0), name
        assert mx.array_equal(kept, computed), name


def test_recomputing_saves_memory(monkeypatch):
    # The states are 2M numbers a location and step, the activations 7M more. The rows from which
    # the weight gradient is formed, of one step at a time here, would hide both.
    monkeypatch.setattr("mlx_tlstm.ops.convolution._WEIGHT_GRADIENT_ELEMENTS", 1)
    layer = TLSTM(4, 24, (4, 5), norm="channel")
    x, cotangent = mx.random.normal((3, 60, 4)), mx.random.normal((3, 60, 24))

    def run():
        mx.clear_cache()
        loss_and_gradients(layer, x, layer.cell.initial_state(3), cotangent)

    kept = peak_bytes(run)
    layer.cell.recompute = True
    assert peak_bytes(run) < kept / 2


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
        weights.append(tree_flatten(trainer.weights))
    for (name, kept), (_, computed) in zip(*weights, strict=True):
        assert mx.array_equal(kept, computed), name

"""What the IRNN's paper promises of it."""

import mlx.core as mx
import numpy as np
import pytest
from comparison import assert_close

from mlx_tlstm import Recurrent
from mlx_tlstm.rivals import IRNNCell

B, T, R, M = 2, 40, 3, 5


def layer_of(seed=0):
    mx.random.seed(seed)
    return Recurrent(IRNNCell(R, M))


def test_starting_values():
    mx.random.seed(0)
    cell = IRNNCell(30, 200)
    assert mx.array_equal(cell.recurrent_weight, mx.eye(200))
    assert not cell.bias.any()
    # Of 6000 numbers the deviation is right to a percent, and the mean to 1.3e-5.
    assert cell.input_weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert abs(cell.input_weight.mean().item()) < 6e-5


def test_untrained_keeps_its_state_without_inputs():
    layer = layer_of()
    layer.cell.input_weight = mx.zeros_like(layer.cell.input_weight)
    state = layer.initial_state(B)._replace(hidden=mx.random.uniform(shape=(B, M)))
    y, after = layer(mx.random.normal((B, T, R)), state)
    assert mx.array_equal(y, mx.broadcast_to(state.hidden[:, None], y.shape))
    assert mx.array_equal(after.hidden, state.hidden)


def test_untrained_adds_its_inputs():
    layer = layer_of()
    # Inputs that no unit answers with less than zero.
    x = mx.random.uniform(shape=(B, T, R))
    layer.cell.input_weight = mx.abs(layer.cell.input_weight)
    sums = np.cumsum(np.array(x @ layer.cell.input_weight.T, np.float64), axis=1)
    assert_close(layer(x)[0], sums, 1e-5)


def test_untrained_passes_gradients_back_unchanged():
    layer = layer_of()
    hidden = mx.random.uniform(1, 2, (B, M))
    weights = mx.random.normal((B, M))

    def loss(hidden):
        state = layer.initial_state(B)._replace(hidden=hidden)
        return (layer(mx.zeros((B, T, R)), state)[1].hidden * weights).sum()

    assert mx.array_equal(mx.grad(loss)(hidden), weights)

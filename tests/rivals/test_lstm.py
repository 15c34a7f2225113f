"""What the single LSTM promises."""

import math

import mlx.core as mx
import pytest
from comparison import assert_close, values_and_gradients
from mlx import nn

from mlx_tlstm import Recurrent
from mlx_tlstm.rivals import LSTMCell

B, T, R, M = 3, 6, 5, 4


def test_with_the_same_weights_it_is_that_of_mlx():
    mx.random.seed(0)
    layer, other = Recurrent(LSTMCell(R, M)), nn.LSTM(R, M)
    layer.cell.bias = mx.random.normal((4 * M,))

    def reordered(array):
        g, i, f, o = mx.split(array, 4)
        return mx.concatenate([i, f, g, o])

    other.Wx, other.Wh = mx.split(reordered(layer.cell.weight), [R], axis=1)
    other.bias = reordered(layer.cell.bias)
    x = mx.random.normal((B, T, R))

    def run(x):
        y, state = layer(x)
        return y, state.hidden, state.cell

    def run_other(x):
        hidden, cell = other(x)
        return hidden, hidden[:, -1], cell[:, -1]

    found, (gradients, d_x) = values_and_gradients(layer, run, x)
    expected, (others, d_x_expected) = values_and_gradients(other, run_other, x)
    assert_close(found, expected, 1e-6)
    gradients = gradients["cell"]
    d_weight = mx.concatenate([others["Wx"], others["Wh"]], axis=1)
    assert_close(reordered(gradients["weight"]), d_weight, 1e-5)
    assert_close(reordered(gradients["bias"]), others["bias"], 1e-5)
    assert_close(d_x, d_x_expected, 1e-5)


@pytest.mark.parametrize("forget_bias", [1.0, 4])
def test_starting_values(forget_bias):
    mx.random.seed(0)
    R, M = 30, 40
    cell = LSTMCell(R, M, forget_bias)
    for block, fan in ((cell.weight[:, :R], R + M), (cell.weight[:, R:], 2 * M)):
        limit = math.sqrt(6 / fan)
        assert 0.99 * limit < mx.abs(block).max() <= limit
        assert mx.abs(block.mean()) < 0.05 * limit
    assert cell.bias.tolist() == [0.0] * 2 * M + [forget_bias] * M + [0.0] * M
    assert LSTMCell(R, M).bias.tolist()[2 * M] == 1

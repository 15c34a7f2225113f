"""What the stacked LSTM with weights of its own in each layer promises."""

import math

import mlx.core as mx
import pytest
from comparison import assert_close, values_and_gradients

from mlx_tlstm import Recurrent, StackedLSTM, StackedLSTMState
from mlx_tlstm.rivals import UntiedLSTMCell
from mlx_tlstm.rivals.gates import LSTMState

B, T, R, M = 3, 6, 5, 4


@pytest.mark.parametrize("L", [1, 2, 7])
def test_with_equal_weights_it_is_the_tied_one(L):
    mx.random.seed(0)
    tied, layer = StackedLSTM(R, M, L), Recurrent(UntiedLSTMCell(R, M, L))
    tied.cell.bias = mx.random.normal((4 * M,))
    tied.cell.input_projection.bias = mx.random.normal((M,))
    layer.cell.input_weight = tied.cell.input_projection.weight
    layer.cell.input_bias = tied.cell.input_projection.bias
    for weights in layer.cell.layers:
        weights.weight, weights.bias = tied.cell.weight.reshape(4 * M, 2 * M), tied.cell.bias
    x = mx.random.normal((B, T, R))
    state = [mx.random.normal((B, L, M)) for _ in range(2)]

    def run(layer, kind):
        def values(x, hidden, cell):
            y, after = layer(x, kind(hidden, cell))
            return y, after.hidden, after.cell

        return values_and_gradients(layer, values, x, *state)

    found, (gradients, *inputs) = run(layer, LSTMState)
    expected, (tied_gradients, *tied_inputs) = run(tied, StackedLSTMState)
    assert_close(found, expected, 1e-5)
    assert_close(inputs, tied_inputs, 4e-5)
    gradients, tied_gradients = gradients["cell"], tied_gradients["cell"]
    # What the tied layers' weights get is the sum over the layers.
    weight, bias = (sum(g[name] for g in gradients["layers"]) for name in ("weight", "bias"))
    assert_close(weight.reshape(4 * M, 2, M), tied_gradients["weight"], 4e-5)
    assert_close(bias, tied_gradients["bias"], 4e-5)
    of_input = tied_gradients["input_projection"]
    assert_close(gradients["input_weight"], of_input["weight"], 4e-5)
    assert_close(gradients["input_bias"], of_input["bias"], 4e-5)


def test_layers_have_weights_of_their_own():
    mx.random.seed(0)
    cell = UntiedLSTMCell(R, M, 3)
    first, second, third = (weights.weight for weights in cell.layers)
    assert not mx.allclose(first, second)
    assert not mx.allclose(second, third)
    layer, x = Recurrent(cell), mx.random.normal((B, T, R))
    for weights in cell.layers:
        before = layer(x)[0]
        weights.bias = weights.bias + 1
        assert not mx.allclose(layer(x)[0], before)


@pytest.mark.parametrize("forget_bias", [1.0, 4])
def test_starting_values(forget_bias):
    mx.random.seed(0)
    R, M = 30, 40
    cell = UntiedLSTMCell(R, M, 2, forget_bias)
    assert cell.input_weight.std().item() == pytest.approx(1 / math.sqrt(R), rel=0.1)
    assert not cell.input_bias.any()
    for layer in cell.layers:
        assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(2 * M), rel=0.1)
        assert 0 < mx.abs(layer.bias[:M]).max() <= 1 / math.sqrt(2 * M)
        assert layer.bias[M:].tolist() == [0.0] * M + [forget_bias] * M + [0.0] * M

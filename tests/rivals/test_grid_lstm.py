"""What the Grid LSTM promises."""

import math

import mlx.core as mx
import pytest
from comparison import assert_close

from mlx_tlstm import Recurrent
from mlx_tlstm.rivals import GridLSTMCell
from mlx_tlstm.rivals.gates import LSTMState

B, T, R, M, L = 3, 6, 5, 4, 2
#: Behind a sigmoid it is 0 or 1 in float32.
SHUT, OPEN = -120.0, 120.0


def with_fixed_gates(cell, along, update, forget, output):
    """The gates of one way, "time" or "depth", no longer read anything."""
    start = 0 if along == "time" else 4 * M
    for row, value in ((1, update), (2, forget), (3, output)):
        rows = slice(start + row * M, start + (row + 1) * M)
        cell.bias[rows] = value
        cell.time_weight[rows] = 0
        cell.depth_weight[rows] = 0


@pytest.mark.parametrize("output", [0.0, OPEN])
@pytest.mark.parametrize("depth", [1, 3, 20])
def test_the_memory_along_depth_passes_all_layers_unchanged(depth, output):
    """The paper's reason for it: a linear way from the input to the output, however deep."""
    mx.random.seed(0)
    cell = GridLSTMCell(R, M, depth)
    with_fixed_gates(cell, "depth", SHUT, OPEN, output)
    layer, x = Recurrent(cell), mx.random.normal((B, T, R))
    _, to_memory = mx.split(cell.input_weight, 2)
    # The output gate is within the tanh.
    share = 0.5 if output == 0 else 1.0
    expected = mx.tanh(share * (x @ to_memory.T))
    assert_close(layer(x)[0], expected, 1e-6)
    gradient = mx.grad(lambda x: layer(x)[0].sum())(x)
    assert_close(gradient, share * (1 - expected**2) @ to_memory, 1e-6)


def test_the_memory_along_time_stays_unchanged():
    mx.random.seed(0)
    cell = GridLSTMCell(R, M, L)
    with_fixed_gates(cell, "time", SHUT, OPEN, 0.0)
    layer = Recurrent(cell)
    state = LSTMState(*(mx.random.normal((B, L, M)) for _ in range(2)))
    _, after = layer(mx.random.normal((B, 50, R)), state)
    assert mx.array_equal(after.cell, state.cell)
    assert_close(after.hidden, mx.tanh(0.5 * state.cell), 1e-6)


def test_depth_and_time_are_treated_alike():
    """With their weights exchanged, T layers over L steps are L layers over T steps, turned."""
    mx.random.seed(0)
    R = 2 * M
    upright, turned = GridLSTMCell(R, M, L), GridLSTMCell(R, M, T)
    upright.bias = mx.random.normal((8 * M,))

    def exchanged(array):
        of_time, of_depth = mx.split(array, 2)
        return mx.concatenate([of_depth, of_time])

    turned.time_weight = exchanged(upright.depth_weight)
    turned.depth_weight = exchanged(upright.time_weight)
    turned.bias = exchanged(upright.bias)
    # Any hidden and memory vectors can come in along depth.
    upright.input_weight = turned.input_weight = mx.eye(R)
    along_depth, along_time = (mx.random.normal((2, B, n, M)) for n in (T, L))

    def run(cell, inputs, state):
        return Recurrent(cell)(mx.concatenate([*inputs], axis=-1), LSTMState(*state))

    y, after = run(upright, along_depth, along_time)
    other_y, other_after = run(turned, along_time, along_depth)
    assert_close(y, other_after.hidden, 1e-5)
    assert_close(after.hidden, other_y, 1e-5)


@pytest.mark.parametrize("forget_bias", [1.0, 4])
def test_starting_values(forget_bias):
    mx.random.seed(0)
    R, M = 30, 40
    cell = GridLSTMCell(R, M, 2, forget_bias)
    assert cell.input_weight.std().item() == pytest.approx(1 / math.sqrt(R), rel=0.1)
    for weight in (cell.time_weight, cell.depth_weight):
        assert weight.std().item() == pytest.approx(1 / math.sqrt(2 * M), rel=0.1)
    for bias in mx.split(cell.bias, 2):
        assert 0 < mx.abs(bias[:M]).max() <= 1 / math.sqrt(2 * M)
        assert bias[M:].tolist() == [0.0] * M + [forget_bias] * M + [0.0] * M

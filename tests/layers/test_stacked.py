"""One axis, K = 2 and no memory convolution is the stacked LSTM, skewed in time."""

from __future__ import annotations

import mlx.core as mx
import pytest
from comparison import assert_close, relative_error

from mlx_tlstm import TLSTM, StackedLSTM, StackedLSTMState, TLSTMState

BATCH, STEPS, INPUT, HIDDEN, DEPTH = 2, 6, 4, 7, 3


def twins(zero_new_content_bias: bool) -> tuple[TLSTM, StackedLSTM]:
    skewed = TLSTM(INPUT, HIDDEN, DEPTH, kernel_size=2, memory_convolution=False)
    stacked = StackedLSTM(INPUT, HIDDEN, DEPTH)
    bias = mx.random.normal((4 * HIDDEN,), key=mx.random.key(1))
    if zero_new_content_bias:
        bias[:HIDDEN] = 0
    projection_bias = mx.random.normal((HIDDEN,), key=mx.random.key(2))
    for layer in (skewed, stacked):
        layer.cell.bias = bias
        layer.cell.input_projection.bias = projection_bias
        layer.cell.input_projection.weight = skewed.cell.input_projection.weight
    # Both read the location or layer before as tap 0 and their own past as tap 1.
    stacked.cell.weight = skewed.cell.weight
    return skewed, stacked


def test_equal_outputs_and_gradients_where_the_new_content_bias_is_zero():
    skewed, stacked = twins(zero_new_content_bias=True)
    x = mx.random.normal((BATCH, STEPS, INPUT), key=mx.random.key(3))
    assert_close(skewed(x)[0], stacked(x)[0], 1e-5)

    def slope(layer):
        return mx.grad(lambda x: mx.sum(mx.sin(layer(x)[0])))(x)

    assert_close(slope(skewed), slope(stacked), 4e-5)


def test_equal_for_any_bias_from_matched_states():
    skewed, stacked = twins(zero_new_content_bias=False)
    x = mx.random.normal((BATCH, STEPS, INPUT), key=mx.random.key(3))
    assert relative_error(skewed(x)[0], stacked(x)[0]) > 1e-3
    # Layer l starts from what location l holds after its first l - 1 steps.
    states = skewed.trace(x).states
    first = skewed.cell.initial_state(BATCH)
    hidden, cell = (
        mx.stack([start[:, 0], *(steps[:, layer - 1, layer] for layer in range(1, DEPTH))], axis=1)
        for start, steps in zip(first, states, strict=True)
    )
    expected, after = stacked(x, StackedLSTMState(hidden, cell))
    assert_close(skewed(x)[0], expected, 1e-5)
    # Its last layer's state is what the far location holds after the flush.
    assert isinstance(skewed.cell.initial_state(1), TLSTMState)
    assert_close(states.cell[:, -1, -1], after.cell[:, -1], 1e-5)


@pytest.mark.parametrize("depth", [1, 4])
def test_has_no_delay(depth):
    layer = StackedLSTM(INPUT, HIDDEN, depth)
    x = mx.random.normal((BATCH, STEPS, INPUT))
    assert (layer.depth, layer.delay) == (depth, 0)
    assert mx.array_equal(layer(x)[0], layer.stream(x)[0])


def test_one_layer_equals_mlx():
    from mlx import nn

    layer = StackedLSTM(INPUT, HIDDEN, 1)
    layer.cell.bias = mx.random.normal((4 * HIDDEN,), key=mx.random.key(1))
    theirs = nn.LSTM(HIDDEN, HIDDEN)
    # MLX orders its gates i, f, g, o.
    order = mx.concatenate([mx.arange(HIDDEN) + block * HIDDEN for block in (1, 2, 0, 3)])
    theirs.Wx = layer.cell.weight[order, 0]
    theirs.Wh = layer.cell.weight[order, 1]
    theirs.bias = layer.cell.bias[order]
    x = mx.random.normal((BATCH, STEPS, INPUT), key=mx.random.key(3))
    expected, _ = theirs(layer.cell.project(x))
    assert_close(layer(x)[0], expected, 1e-5)

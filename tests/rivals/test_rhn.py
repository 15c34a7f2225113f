"""What the recurrent highway network's paper promises of it."""

import mlx.core as mx
from comparison import assert_close
from mlx.utils import tree_map

from mlx_tlstm import Recurrent
from mlx_tlstm.rivals import RecurrentHighwayCell

B, T, R, M, L = 2, 20, 3, 5, 4


def layer_of(transform_biases):
    """A layer with random parameters, whose transform gates have the bias given for each layer."""
    mx.random.seed(0)
    layer = Recurrent(RecurrentHighwayCell(R, M, len(transform_biases)))
    parameters = layer.cell.parameters()
    layer.cell.update(tree_map(lambda array: mx.random.normal(array.shape), parameters))
    for weights, value in zip(layer.cell.layers, transform_biases, strict=True):
        weights.bias[M:] = value
    return layer


def random_state(layer):
    return layer.initial_state(B)._replace(hidden=mx.random.normal((B, M)))


def test_starting_values():
    mx.random.seed(0)
    cell = RecurrentHighwayCell(30, 200, 2)
    arrays = [cell.input_weight]
    for layer in cell.layers:
        assert (layer.bias[200:] == -4).all()
        arrays += [layer.weight, layer.bias[:200]]
    for array in arrays:
        assert 0.035 < mx.abs(array).max().item() <= 0.04
        assert abs(array.mean().item()) < 0.005


def test_closed_gates_carry_the_state_unchanged():
    layer = layer_of([-1e4] * L)
    state = random_state(layer)
    y, after = layer(mx.random.normal((B, T, R)), state)
    assert mx.array_equal(y, mx.broadcast_to(state.hidden[:, None], y.shape))
    assert mx.array_equal(after.hidden, state.hidden)


def test_closed_gates_pass_gradients_back_unchanged():
    """The Jacobian of a step is the identity; Geršgorin's circles are points at one."""
    layer, weights = layer_of([-1e4] * L), mx.random.normal((B, M))
    x = mx.random.normal((B, T, R))

    def loss(hidden):
        return (layer(x, layer.initial_state(B)._replace(hidden=hidden))[0][:, -1] * weights).sum()

    assert mx.array_equal(mx.grad(loss)(mx.random.normal((B, M))), weights)


def test_open_gates_are_a_deep_tanh_network():
    layer = layer_of([1e4] * L)
    x, state = mx.random.normal((B, 1, R)), random_state(layer)
    s, projected = state.hidden, x[:, 0] @ layer.cell.input_weight[:M].T
    for number, weights in enumerate(layer.cell.layers):
        s = mx.tanh(s @ weights.weight[:M].T + weights.bias[:M] + (0 if number else projected))
    assert_close(layer(x, state)[0][:, 0], s, 1e-6)


def test_layers_with_closed_gates_are_as_none():
    deep, flat = layer_of([0.5, -1e4, -1e4]), Recurrent(RecurrentHighwayCell(R, M, 1))
    flat.cell.input_weight = deep.cell.input_weight
    flat.cell.layers = deep.cell.layers[:1]
    x = mx.random.normal((B, T, R))
    assert mx.array_equal(deep(x)[0], flat(x)[0])


def test_inputs_enter_the_first_layer_only():
    layer = layer_of([-1e4, 0.5, 0.5])
    state = random_state(layer)
    first, other = (layer(mx.random.normal((B, T, R)), state)[0] for _ in range(2))
    assert mx.array_equal(first, other)
    assert not mx.allclose(first[:, 0], state.hidden)

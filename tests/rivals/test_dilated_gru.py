"""What the dilated GRU's paper promises of it."""

import mlx.core as mx
import numpy as np
import pytest
from comparison import assert_close
from dilated_gru_reference import gru
from layer_helpers import peak_bytes
from mlx.utils import tree_flatten

from mlx_tlstm import Recurrent, SequenceModel
from mlx_tlstm.rivals import DilatedGRUCell

B, T, R, M, L = 2, 11, 3, 4, 3


def layer_of(depth=L):
    mx.random.seed(0)
    return Recurrent(DilatedGRUCell(R, M, depth))


def test_starting_values():
    mx.random.seed(0)
    cell = DilatedGRUCell(30, 50, 2)
    for layer, width in zip(cell.layers, (30, 50), strict=True):
        assert (layer.gate_bias == 1).all()
        assert not layer.candidate_bias.any()
        for array, rows in [(layer.gate_weight, 100), (layer.candidate_weight, 50)]:
            limit = (6 / (rows + width + 50)) ** 0.5
            assert 0.98 * limit < mx.abs(array).max().item() <= limit


def test_each_layer_is_a_gru_on_every_residue_class():
    """Layer l, cut into its 2^l interleaved sequences, is a GRU that runs on each of them."""
    layer = layer_of()
    parameters = {
        name: np.array(array, np.float64) for name, array in tree_flatten(layer.cell.parameters())
    }
    x = mx.random.normal((B, T, R))
    outputs = np.array(x, np.float64)
    for number in range(L):
        inputs, outputs = outputs, np.zeros((B, T, M))
        for residue in range(2**number):
            for b in range(B):
                hidden = np.zeros(M)
                for t, y in enumerate(inputs[b, residue :: 2**number]):
                    hidden = gru(parameters, number, y, hidden)
                    outputs[b, residue + t * 2**number] = hidden
    assert_close(layer(x)[0], outputs, 1e-5)


def test_reaches_back_by_powers_of_two():
    """Where the lower layers keep nothing, the last one reads every 2^l-th input alone."""
    layer = layer_of()
    for lower in layer.cell.layers[:-1]:
        lower.gate_weight[:] = 0
        lower.candidate_weight[:, -M:] = 0
        lower.gate_bias[M:] = -1e4
    x = mx.random.normal((1, T, R))
    gradient = mx.grad(lambda x: layer(x)[0][0, -1].sum())(x)[0]
    reached = [t for t in range(T) if mx.abs(gradient[t]).max() > 0]
    assert reached == [T - 1 - lag for lag in range(0, T, 2 ** (L - 1))][::-1]


def test_every_input_is_reached():
    layer = layer_of()
    x = mx.random.normal((1, T, R))
    gradient = mx.grad(lambda x: layer(x)[0][0, -1].sum())(x)[0]
    assert (mx.abs(gradient).max(axis=1) > 0).all()


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
def test_the_state_is_the_last_hidden_states(steps):
    layer = layer_of()
    x = mx.random.normal((B, steps, R))
    y, after = layer(x)
    assert [len(past) for past in after.hidden] == [1, 2, 4]
    for lag, array in enumerate(reversed(after.hidden[-1])):
        assert mx.array_equal(array, y[:, -1 - lag] if lag < steps else mx.zeros((B, M)))


def test_memory_grows_with_the_number_of_steps_and_not_with_the_dilation():
    layer = Recurrent(DilatedGRUCell(R, 16, 7))

    def peak(steps):
        x = mx.zeros((16, steps, R))
        return peak_bytes(lambda: mx.eval(mx.grad(lambda x: layer(x)[0].sum())(x)))

    once, twice = peak(20), peak(40)
    assert twice < 2.5 * once
    # A ring of 127 states that every step keeps would alone be 40 · 127 · 16 · 16 numbers.
    assert twice < 0.5 * 40 * 127 * 16 * 16 * 4


def test_count_at_the_size_of_the_paper():
    """9 layers of 50 units on single pixels, with the read-out: about 130 thousand."""
    model = SequenceModel(Recurrent(DilatedGRUCell(1, 50, 9)), 10)
    count = sum(array.size for _, array in tree_flatten(model.parameters()))
    assert count == 3 * 50 * 52 + 8 * 3 * 50 * 101 + 510 == 129_510


@pytest.mark.parametrize("depth", [17, 64, 10**9])
def test_too_deep_is_refused(depth):
    with pytest.raises(ValueError, match=r"\[DilatedGRUCell\] 'depth' must be 16 or less but got"):
        DilatedGRUCell(R, M, depth)

"""What the multiplicative LSTM's paper promises of it."""

import mlx.core as mx
import numpy as np
import pytest
from comparison import assert_close
from layer_helpers import random_state
from mlx.utils import tree_flatten
from reference import sigmoid

from mlx_tlstm.rivals import MultiplicativeLSTMCell

R, M = 4, 6


def test_starting_values():
    mx.random.seed(0)
    cell = MultiplicativeLSTMCell(25, 400)
    for array, deviation in [
        (cell.input_weight, 0.2),
        (cell.hidden_weight, 0.05),
        (cell.weight, 0.05),
    ]:
        assert array.std().item() == pytest.approx(deviation, rel=0.05)
    forget = cell.bias[800:1200]
    assert (forget == 3).all()
    assert cell.bias.sum() == forget.sum()
    cell = MultiplicativeLSTMCell(25, 400, forget_bias=-1)
    assert (cell.bias[800:1200] == -1).all()


@pytest.mark.parametrize("symbol", range(R))
def test_each_symbol_has_a_transition_matrix_of_its_own(symbol):
    """With one-hot inputs a step is that of an LSTM whose recurrent weights the symbol selects."""
    mx.random.seed(0)
    cell = MultiplicativeLSTMCell(R, M)
    cell.bias = mx.random.normal(cell.bias.shape)
    state = random_state(cell, 1)
    arrays = {name: np.array(array, np.float64) for name, array in tree_flatten(cell.parameters())}
    scale, from_input = np.split(arrays["input_weight"][:, symbol], [M])
    transition = arrays["weight"] @ np.diag(scale) @ arrays["hidden_weight"]
    hidden, memory = (np.array(array[0], np.float64) for array in state)
    candidate, *gates = np.split(from_input + transition @ hidden, 4)
    output_bias, *biases = np.split(arrays["bias"], 4)
    i, f, o = (sigmoid(gate + bias) for gate, bias in zip(gates, biases, strict=True))
    memory = f * memory + i * candidate
    output, after = cell(mx.eye(R)[symbol : symbol + 1], state)
    assert_close([output[0], after.cell[0]], [np.tanh(o * memory + output_bias), memory], 1e-5)


def test_a_symbol_can_cut_the_recurrence_off():
    mx.random.seed(0)
    cell = MultiplicativeLSTMCell(R, M)
    cell.input_weight[:M, 2] = 0
    state = random_state(cell, 1)
    other = state._replace(hidden=mx.random.normal((1, M)))
    same, different = mx.eye(R)[2:3], mx.eye(R)[1:2]
    assert mx.array_equal(cell(same, state)[0], cell(same, other)[0])
    assert not mx.allclose(cell(different, state)[0], cell(different, other)[0])


def test_without_biases_it_is_as_the_paper_writes_it():
    """h = tanh(c ⊙ o): with the output gate half open it is tanh(c / 2), not tanh(c) / 2."""
    cell = MultiplicativeLSTMCell(R, M, forget_bias=0)
    cell.update({"input_weight": mx.zeros_like(cell.input_weight)})
    state = random_state(cell, 1)
    output, after = cell(mx.ones((1, R)), state)
    assert_close((output, after.cell), (mx.tanh(state.cell / 4), state.cell / 2), 1e-6)

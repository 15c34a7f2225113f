"""Every rival against its float64 reference, and what all of them promise.

Tolerances are relative, norm-wise. Float32 rounds at 6e-8; some tens of dependent operations a
step over six steps stay under 1e-5 in the values, and under 4e-5 in the gradients, which pass them
twice. Central differences of the reference are themselves right to 1e-8.
"""

from __future__ import annotations

import inspect

import mlx.core as mx
import numpy as np
import pytest
from cases import BATCH, CASES, INPUT, STEPS
from comparison import (
    as_float64,
    assert_close,
    central_differences,
    relative_error,
    values_and_gradients,
    weights_in_sum,
)
from layer_helpers import single, to_mlx
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_map

from mlx_tlstm import Recurrent, SequenceModel, rivals
from mlx_tlstm.recurrence.trees import arrays_of, with_arrays

VALUE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 4e-5
#: bfloat16 rounds at 4e-3; some roundings a step over six steps add up to a few percent.
BFLOAT16_TOLERANCE = 0.05

every_rival = pytest.mark.parametrize("name", CASES)


def make(name, seed=0):
    """A layer around the cell, random parameters in it, and random inputs and arrays of a state."""
    case, rng = CASES[name], np.random.default_rng(seed)
    layer = Recurrent(case.cell(**case.arguments))

    def random(array, scale):
        return single(scale * rng.normal(size=array.shape))

    trained = tree_flatten(layer.cell.trainable_parameters())
    parameters = {key: random(array, 0.5) for key, array in trained}
    layer.cell.load_weights(list(to_mlx(parameters).items()))
    x = single(rng.normal(size=(BATCH, STEPS, INPUT)))
    return layer, parameters, x, [random(array, 1.0) for array in zeros(layer)]


def zeros(layer):
    """The arrays of the cell's initial state."""
    state = layer.initial_state(BATCH)
    return arrays_of(state, state)


def state_of(layer, arrays):
    """A state of the cell, of arrays of any kind."""
    types = [array.dtype for array in zeros(layer)]
    arrays = [mx.array(a).astype(kind) for a, kind in zip(arrays, types, strict=True)]
    return with_arrays(layer.initial_state(BATCH), arrays)


@every_rival
def test_values_and_gradients_against_the_reference(name):
    layer, parameters, x, state = make(name)
    inputs = {"x": x, **{f"state.{number}": array for number, array in enumerate(state)}}

    def run(x, *state):
        y, after = layer(x, with_arrays(layer.initial_state(BATCH), state))
        return [y, *arrays_of(after, after)]

    def reference(arrays):
        own = {key: arrays[key] for key in parameters}
        return CASES[name].reference(own, *(arrays[key] for key in inputs))

    def number(arrays):
        pairs = zip(weights, reference(arrays), strict=True)
        return sum(float((weight * value).sum()) for weight, value in pairs)

    values, (of_cell, *of_inputs) = values_and_gradients(layer.cell, run, *to_mlx(inputs).values())
    weights = [as_float64(weights_in_sum(n, array.shape)) for n, array in enumerate(values)]
    assert_close(values, list(reference(parameters | inputs)), VALUE_TOLERANCE)
    gradients = dict(tree_flatten(of_cell)) | dict(zip(inputs, of_inputs, strict=True))
    differences = central_differences(number, parameters | inputs)
    assert_close(gradients, differences, GRADIENT_TOLERANCE)


@every_rival
def test_a_call_on_the_cell_is_one_step(name):
    layer, _, x, state = make(name)
    x, state = mx.array(x, mx.float32), state_of(layer, state)
    y, after = layer(x[:, :1], state)
    assert_close(layer.cell(x[:, 0], state), (y[:, 0], after), 1e-6)


@every_rival
def test_gradients_of_a_compiled_step_with_checkpoints(name):
    layer, _, x, _ = make(name)
    x = mx.array(x, mx.float32)
    run = nn.value_and_grad(layer.cell, lambda x: layer(x)[0].square().sum())
    expected = run(x)
    layer.checkpoint = 4
    assert_close(run(x), expected, 1e-5)
    parameters = layer.cell.state
    compiled = mx.compile(run, inputs=parameters, outputs=parameters)
    for _ in range(2):
        assert_close(compiled(x), expected, 1e-5)


@every_rival
def test_no_output_depends_on_a_later_input(name):
    layer, _, x, _ = make(name)
    x = mx.array(x, mx.float32)
    changed = mx.concatenate([x[:, :3], x[:, 3:] + 1], axis=1)
    y, other = layer(x)[0], layer(changed)[0]
    assert mx.array_equal(y[:, :3], other[:, :3])
    assert relative_error(other[:, 3:], y[:, 3:]) > 1e-3


@every_rival
def test_no_example_depends_on_another(name):
    layer, _, x, state = make(name)
    x, state = mx.array(x, mx.float32), state_of(layer, state)
    whole = layer(x, state)
    alone = layer(x[1:], tree_map(lambda array: array[1:], state))
    assert_close(alone, tree_map(lambda array: array[1:], whole), 1e-6)


@every_rival
@pytest.mark.parametrize("cut", [1, 4])
def test_chunks(name, cut):
    layer, _, x, _ = make(name)
    x = mx.array(x, mx.float32)
    first, state = layer(x[:, :cut])
    rest, state = layer(x[:, cut:], state)
    assert_close((mx.concatenate([first, rest], axis=1), state), layer(x), 1e-6)


@every_rival
def test_starts_from_a_zero_state(name):
    layer, parameters, x, _ = make(name)
    state = zeros(layer)
    assert all(array.shape[0] == BATCH and not array.any() for array in state)
    y, after = layer(mx.array(x, mx.float32))
    expected = CASES[name].reference(parameters, x, *map(as_float64, state))
    assert_close([y, *arrays_of(after, after)], list(expected), VALUE_TOLERANCE)


@every_rival
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision(name, dtype):
    layer, _, x, _ = make(name)
    x = mx.array(x, mx.float32)
    expected, _ = layer(x)
    layer.set_dtype(dtype)
    kinds = [array.dtype for array in zeros(layer)]
    assert {*kinds} <= {dtype, mx.float32}
    # Inputs of a task are float32 or of the weights' type.
    for inputs in (x, x.astype(dtype)):
        y, after = layer(inputs)
        assert y.dtype == dtype
        assert [array.dtype for array in arrays_of(after, after)] == kinds
        assert relative_error(y, expected) < BFLOAT16_TOLERANCE
    gradient = mx.grad(lambda x: layer(x)[0].astype(mx.float32).sum())(x)
    assert mx.isfinite(gradient).all()


@every_rival
@pytest.mark.parametrize(("R", "M", "L"), [(1, 1, 1), (3, 7, 2), (65, 100, 4)])
def test_counts_of_parameters(name, R, M, L):
    case = CASES[name]
    sizes = {"input_size": R, "hidden_size": M}
    if "depth" in case.arguments:
        sizes["depth"] = L
    cell = case.cell(**sizes)
    count = sum(array.size for _, array in tree_flatten(cell.trainable_parameters()))
    assert count == case.parameters(R, M, L)
    y, _ = Recurrent(cell)(mx.ones((2, 3, R)))
    assert y.shape == (2, 3, M)
    assert mx.isfinite(y).all()


@every_rival
def test_arguments(name):
    case = CASES[name]
    taken = inspect.signature(case.cell).parameters
    assert [*taken][:2] == ["input_size", "hidden_size"]
    assert {*taken} <= {"input_size", "hidden_size", "depth", "forget_bias"}
    defaults = [key for key, one in taken.items() if one.default is not inspect.Parameter.empty]
    assert {*defaults} <= {"forget_bias"}
    cell = case.cell(**case.arguments)
    for key, value in case.arguments.items():
        assert getattr(cell, key) == value
    assert case.cell.__name__ in rivals.__all__


@every_rival
@pytest.mark.parametrize("value", [0, -1, 2.5, "3", None, True])
def test_wrong_sizes_are_named(name, value):
    case = CASES[name]
    for key in {"input_size", "hidden_size", "depth"} & {*inspect.signature(case.cell).parameters}:
        expected = rf"\[{case.cell.__name__}\] '{key}' must be an integer of 1 or more but got"
        with pytest.raises(ValueError, match=expected):
            case.cell(**{**case.arguments, key: value})


@every_rival
@pytest.mark.parametrize("width", [2**31 - 1, 2**29, 2**28 + 1, 2**15])
def test_arrays_of_too_many_elements_are_refused(name, width):
    cell = CASES[name].cell
    with pytest.raises(ValueError, match=rf"\[{cell.__name__}\] '\w+' must be of 2,147,483,647 el"):
        cell(**{**CASES[name].arguments, "input_size": 2**17, "hidden_size": width})


@every_rival
@pytest.mark.parametrize("depth", [2**31 - 1, 10**6, 10_001])
def test_too_many_layers_are_refused_before_any_is_made(name, depth):
    case = CASES[name]
    if "depth" in case.arguments:
        expected = rf"\[{case.cell.__name__}\] 'depth' must be [\d,]+ or less but got {depth}"
        with pytest.raises(ValueError, match=expected):
            case.cell(**{**case.arguments, "depth": depth})


@every_rival
def test_shows_its_sizes(name):
    case = CASES[name]
    sizes = ", ".join(f"{key}={value}" for key, value in case.arguments.items())
    assert repr(case.cell(**case.arguments)).startswith(f"{case.cell.__name__}({sizes}")


@every_rival
def test_vmap_of_values_and_gradients(name):
    layer, _, x, _ = make(name)
    many = mx.random.normal((2, *x.shape))
    for run in (lambda x: layer(x)[0], mx.grad(lambda x: layer(x)[0].square().sum())):
        assert_close(mx.vmap(run)(many), mx.stack([run(x) for x in many]), 1e-5)


@pytest.mark.parametrize(
    "name",
    [n for n, one in CASES.items() if "forget_bias" in inspect.signature(one.cell).parameters],
)
def test_wrong_forget_biases_are_named(name):
    case = CASES[name]
    for value in (float("nan"), float("inf"), 1e39, "1", None, True):
        expected = rf"\[{case.cell.__name__}\] 'forget_bias' must be a number that float32 holds"
        with pytest.raises(ValueError, match=expected):
            case.cell(**case.arguments, forget_bias=value)


@every_rival
def test_a_frozen_network_trains_its_read_out(name):
    layer, _, x, _ = make(name)
    model = SequenceModel(layer, 2)
    model.layer.freeze()
    gradients = nn.value_and_grad(model, lambda model: model(mx.array(x))[0].square().sum())(model)
    assert {key for key, _ in tree_flatten(gradients[1])} == {"readout.weight", "readout.bias"}


@every_rival
def test_learns_in_a_model(name):
    """The loss of showing each symbol again one step later falls to less than half."""
    mx.random.seed(0)
    case, R = CASES[name], 3
    model = SequenceModel(Recurrent(case.cell(**{**case.arguments, "input_size": R})), R)
    symbols = mx.random.randint(0, R, (16, 5))
    adam = optimizers.Adam(0.03, bias_correction=True)

    def loss_of(model):
        answers = model(mx.eye(R)[symbols])[0][:, 1:]
        return nn.losses.cross_entropy(answers, symbols[:, :-1], reduction="mean")

    gradient, losses = nn.value_and_grad(model, loss_of), []
    for _ in range(100):
        loss, gradients = gradient(model)
        adam.update(model, gradients)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]

"""Layers on the kernels against the same layers on plain operations.

Both round to float32 (or half precision) at the same places, but sum in another order: values agree
within 1e-5 and gradients, which sum over more, within 4e-5, norm-wise.
"""

import inspect

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from benchmarking import launches
from comparison import ROUNDING, assert_close, relative_error, values_and_gradients
from kernel_devices import counted, on_gpu
from layer_helpers import OUR_VARIANTS, moved, random_state
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm import TLSTM, TRNN, SequenceModel, make_layer
from mlx_tlstm.kernels import tiles, trial, tuning
from mlx_tlstm.kernels.library import Kernel
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.recurrence.snapshot import snapshot

VALUES, GRADIENTS = 1e-5, 4e-5
TENSOR_VARIANTS = [name for name in OUR_VARIANTS if name != "slstm"]


def results(layer, backend, x, state):
    """Outputs and final state, and all gradients, of a pass on ``backend``."""
    layer.cell.backend = backend
    found = values_and_gradients(layer, layer, x, state)
    mx.eval(found)
    return found


def inputs(layer, batch_size, steps):
    x = mx.random.normal((batch_size, steps, layer.input_size))
    return x, random_state(layer.cell, batch_size)


def assert_agree(found, expected):
    assert_close(found[0], expected[0], VALUES)
    assert_close(found[1], expected[1], GRADIENTS)


def compare(layer, other="ops"):
    arguments = inputs(layer, batch_size=2, steps=5)
    expected = results(layer, other, *arguments)
    assert_agree(results(layer, None, *arguments), expected)


LAYERS = {
    "one axis": lambda: TLSTM(4, 7, (3,), norm="channel"),
    "two unequal axes": lambda: TLSTM(4, 40, (2, 4), (3, 2), norm="layer"),
    "three axes": lambda: TLSTM(4, 7, (2, 3, 2), (2, 3, 4)),
    "no memory convolution": lambda: TLSTM(4, 7, (3, 2), 3, memory_convolution=False),
    "one location": lambda: TLSTM(4, 7, (1, 1), 3, norm="channel"),
    "tRNN": lambda: TRNN(4, 7, (3, 2), (3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.standin(check=False)
def test_layers_agree_with_plain_operations(kernel_calls, name):
    mx.random.seed(1)
    compare(moved(LAYERS[name]()))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.standin(check=False)
def test_layers_agree_with_products_between_kernels(kernel_calls, name):
    mx.random.seed(1)
    with tuning.forced(None):
        compare(moved(LAYERS[name]()))
    launched = {call.kernel for call in counted(kernel_calls)}
    assert {"convolution_unfold", "convolution_fold"} < launched
    assert "convolution_forward" not in launched


@pytest.mark.parametrize("choice", [tiles.CANDIDATES[-1], None], ids=["tile", "product"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.standin(mode="fast", check=False)
def test_no_input_of_a_kernel_is_copied_before(kernel_calls, monkeypatch, name, recompute, choice):
    """MLX copies a strided view, in a launch of its own, before it hands it to a kernel."""
    layer, launch, strided = LAYERS[name](), Kernel.__call__, []
    layer.cell.recompute = recompute

    def checked(self, inputs, **rest):
        names = zip(self.inputs, inputs, strict=True)
        strided.extend(f"{self.name}: {one}" for one, array in names if not is_contiguous(array))
        return launch(self, inputs, **rest)

    monkeypatch.setattr(Kernel, "__call__", checked)
    with tuning.forced(choice):
        results(layer, None, *inputs(layer, 2, 9))
    assert strided == []
    assert len(kernel_calls) > 9 * 3


def is_contiguous(array):
    mx.eval(array)
    return memoryview(array).c_contiguous


def test_strided_arrays_are_seen():
    array = mx.zeros((2, 3, 4))
    assert is_contiguous(array[1:])
    assert not is_contiguous(array[:, 1:])
    assert not is_contiguous(array.swapaxes(0, 1))


@pytest.mark.parametrize("name", ["two unequal axes", "tRNN"])
@pytest.mark.standin(mode="fast", check=False)
def test_layers_agree_with_the_equations(kernel_calls, name):
    mx.random.seed(1)
    compare(moved(LAYERS[name]()), other="reference")


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.standin(mode="fast", check=False)
def test_half_precision(kernel_calls, dtype):
    # Rounding accumulates over the steps on both sides, in other ways: kernels round activations
    # once, plain operations before and after the bias. Each is held against float32 on the same
    # numbers, and over several of them the kernels may not lose more.
    errors = []  # [seeds, arrays, 2]
    for seed in range(4):
        mx.random.seed(seed)
        layer = moved(TLSTM(4, 7, (3, 2), norm="channel"))
        layer.set_dtype(dtype)
        x, state = inputs(layer, 2, 5)
        passes = [results(layer, backend, x, state) for backend in (None, "ops")]
        layer.set_dtype(mx.float32)
        exact = results(layer, "ops", x, type(state)(*(a.astype(mx.float32) for a in state)))
        errors.append([])
        for (_, mine), (_, theirs), (_, truth) in zip(
            *map(tree_flatten, (*passes, exact)), strict=True
        ):
            assert mine.dtype == theirs.dtype
            errors[-1].append((relative_error(mine, truth), relative_error(theirs, truth)))
    mine, theirs = np.sqrt(np.mean(np.square(errors), axis=0)).T
    assert np.all(mine < 1.2 * theirs + ROUNDING[dtype]), (mine, theirs)


@pytest.mark.parametrize("name", ["two unequal axes", "no memory convolution", "tRNN"])
@pytest.mark.standin(mode="fast", check=False)
def test_recomputed_gradients_are_the_same_to_the_bit(kernel_calls, name):
    mx.random.seed(1)
    layer = moved(LAYERS[name]())
    arguments = inputs(layer, 2, 5)
    kept = results(layer, None, *arguments)
    layer.cell.recompute = True
    assert_close(results(layer, None, *arguments), kept)


@pytest.mark.standin(mode="fast", check=False)
def test_one_step_at_the_papers_size(kernel_calls):
    """3D, L = 10, M = 100, batch 15, forward and backward, in the quick mode."""
    mx.random.seed(1)
    layer = moved(TLSTM(65, 100, (10, 10), norm="channel"))
    cell, (x, state) = layer.cell, inputs(layer, 15, 1)

    def step(backend):
        cell.backend = backend
        return values_and_gradients(cell, cell, x[:, 0], state)

    assert_agree(step(None), step("ops"))


@pytest.mark.parametrize(
    ("dtype", "recompute"), [(mx.float32, False), (mx.float16, False), (mx.float32, True)]
)
def test_operations_of_a_time_step(dtype, recompute):
    """Of the compiled graph: kernels, products between them, and nothing else of a step's own."""
    layer = TLSTM(4, 7, (2, 3), norm="channel", recompute=recompute)
    layer.set_dtype(dtype)
    with tuning.forced(tiles.CANDIDATES[-1]):
        found = launches.of_a_step(layer, 2)
    stacks = found.pop("stack")
    assert stacks < 0.2
    assert found == {
        "convolution_forward": 1 + recompute,
        "memory_forward": 1,
        "memory_backward": 1,
        "convolution_input_gradient": 1,
        "convolution_weight_gradient": 1 / 8,
    }
    with tuning.forced(None):
        found = launches.of_a_step(layer, 2)
    assert found.pop("stack") == stacks + 3 / 8  # of eight steps' arrays
    products = found.pop("AddMM") + found.pop("Matmul")
    assert products == 2 + recompute + 1 / 8
    assert found.pop("convolution_unfold") == 1 + recompute + 1 / 8
    assert {name: found.pop(name) for name in list(found) if "_" in name} == {
        "memory_forward": 1,
        "memory_backward": 1,
        "convolution_fold": 1,
    }
    # The bias' gradient; half precision is added up in float32.
    assert sum(found.values()) <= (2 if dtype == mx.float32 else 5) / 8, found


@pytest.mark.parametrize("name", ["two unequal axes", "tRNN"])
def test_a_layers_call_is_near_its_launches(monkeypatch, name):
    """Call, time loop, its forward pass, the cell's step, the backend: then a kernel."""
    layer, stacks, launch = LAYERS[name](), [], Kernel.__call__

    def recording(self, *arguments, **options):
        functions = [frame.function for frame in inspect.stack()[1:]]
        stacks.append(functions[: functions.index(test) + 1])
        return launch(self, *arguments, **options)

    test = inspect.currentframe().f_code.co_name
    monkeypatch.setattr(Kernel, "__call__", recording)
    with launches.recorded():
        layer(mx.zeros((2, 5, 4)))
    steps = [stack for stack in stacks if "forward" in stack[1:3]]
    assert len(steps) >= 5 + layer.delay
    for stack in steps:
        assert stack[-2:] == ["__call__", test]
        assert len(stack) - 1 <= 5, stack


@pytest.mark.standin(mode="fast", check=False)
@pytest.mark.parametrize(("batch", "M"), [(1, 7), (7, 1), (2, 3), (1, 8), (8, 1), (3, 3)])
def test_fewer_numbers_than_a_buffer_has(kernel_calls, batch, M):
    """MLX would pass them as constants, at offsets that Metal may not take."""
    layer = TLSTM(2, M, 2)
    layer(mx.zeros((batch, 4, 2)))[0].sum().item()
    assert bool(counted(kernel_calls)) == (batch * M >= 8)
    assert trial.examples(M) * M >= 8


@pytest.mark.standin(mode="fast", check=False)
@pytest.mark.parametrize("name", ["two unequal axes", "tRNN"])
def test_gradient_in_evaluation_mode_runs_forward_again(kernel_calls, name):
    mx.random.seed(1)
    layer = moved(LAYERS[name]())
    arguments = inputs(layer, 2, 5)
    expected = results(layer, None, *arguments)
    layer.eval()
    assert_close(results(layer, None, *arguments), expected)


def losses(variant, backend, compiled=False):
    """Of four training steps."""
    mx.random.seed(5)
    model = SequenceModel(make_layer(variant, 6, 10, 3, backend=backend), 6)
    optimizer = optim.Adam(1e-2, bias_correction=True)
    symbols = mx.random.randint(0, 6, (3, 9))

    def loss(model, symbols):
        logits, _ = model(mx.eye(6)[symbols[:, :-1]])
        return nn.losses.cross_entropy(logits, symbols[:, 1:], reduction="mean")

    def gradient(model, symbols):
        copy = snapshot(model)
        return nn.value_and_grad(copy, loss)(copy, symbols)

    compiled_step = CompiledFunction(model, gradient)
    history = []
    for _ in range(4):
        value, gradients = compiled_step(symbols) if compiled else gradient(model, symbols)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        history.append(value.item())
    return history


@pytest.mark.parametrize("variant", TENSOR_VARIANTS)
@pytest.mark.standin(mode="fast", check=False)
def test_training_steps_have_the_losses_of_plain_operations(kernel_calls, variant):
    expected = losses(variant, "ops")
    assert expected[-1] < expected[0]
    # Adam divides by the gradient's size, which makes a rounding of a small gradient a step's.
    assert losses(variant, None) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("metal", marks=pytest.mark.metal),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ],
)
@pytest.mark.parametrize("variant", TENSOR_VARIANTS)
def test_compiled_training_steps_have_them_too(backend, variant):
    """The path that training takes, which the CPU's stand-in cannot."""
    with on_gpu(backend):
        expected = losses(variant, "ops")
        assert losses(variant, backend, compiled=True) == pytest.approx(expected, rel=1e-4)

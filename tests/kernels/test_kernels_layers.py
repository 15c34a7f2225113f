"""Layers on the kernels against the same layers on plain operations.

Both round to float32 (or half precision) at the same places, but sum in another order: values agree
within 1e-5 and gradients, which sum over more, within 4e-5, norm-wise.
"""

import inspect
from collections import Counter

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from benchmarking import launches
from comparison import relative_error
from kernel_devices import counted, on_gpu
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from mlx_tlstm import TLSTM, TRNN, VARIANTS, SequenceModel, make_layer
from mlx_tlstm.kernels import dispatch, tiles, tuning
from mlx_tlstm.kernels.library import Kernel
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.reference import ReferenceBackend

VALUES, GRADIENTS = 1e-5, 4e-5
TENSOR_VARIANTS = [name for name in VARIANTS if name != "slstm"]


def randomized(layer):
    """Every parameter off the zeros and ones that hide mistakes."""
    layer.update(tree_map(lambda p: p + 0.1 * mx.random.normal(p.shape), layer.parameters()))
    return layer


def results(layer, backend, x, state, cotangents):
    """Outputs, final state and all gradients of a pass on ``backend``."""
    layer.cell.backend = backend

    def loss(parameters, x, state):
        layer.update(parameters)
        y, final = layer(x, state)
        arrays = (y, *final)
        pairs = zip(arrays, cotangents, strict=True)
        return sum((array.astype(mx.float32) * c).sum() for array, c in pairs), arrays

    parameters = layer.parameters()
    (_, arrays), gradients = mx.value_and_grad(loss, argnums=(0, 1, 2))(parameters, x, state)
    layer.update(parameters)
    mx.eval(arrays, gradients)
    return arrays, tree_flatten(gradients)


def inputs(layer, batch_size, steps):
    cell = layer.cell
    x = mx.random.normal((batch_size, steps, cell.input_size))
    state = cell.state_type(
        *(mx.random.normal(a.shape).astype(a.dtype) for a in cell.initial_state(batch_size))
    )
    y_shape = (batch_size, steps, cell.hidden_size)
    cotangents = [mx.random.normal(shape) for shape in (y_shape, *(a.shape for a in state))]
    return x, state, cotangents


def compare(layer, batch_size, steps, other="ops", values=VALUES, gradients=GRADIENTS):
    arguments = inputs(layer, batch_size, steps)
    expected, expected_gradients = results(layer, other, *arguments)
    got, got_gradients = results(layer, None, *arguments)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert relative_error(mine, np.array(theirs.astype(mx.float32))) < values
    for (name, mine), (_, theirs) in zip(got_gradients, expected_gradients, strict=True):
        assert mine.dtype == theirs.dtype
        assert relative_error(mine, np.array(theirs.astype(mx.float32))) < gradients, name
    return got_gradients


def flat(arrays_and_gradients):
    arrays, gradients = arrays_and_gradients
    return [*arrays, *(gradient for _, gradient in gradients)]


LAYERS = {
    "one axis": lambda: TLSTM(4, 7, (3,), norm="channel"),
    "two unequal axes": lambda: TLSTM(4, 40, (2, 4), (3, 2), norm="layer"),
    "three axes": lambda: TLSTM(4, 7, (2, 3, 2), (2, 3, 4)),
    "no memory convolution": lambda: TLSTM(4, 7, (3, 2), 3, memory_convolution=False),
    "one location": lambda: TLSTM(4, 7, (1, 1), 3, norm="channel"),
    "tRNN": lambda: TRNN(4, 7, (3, 2), (3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_plain_operations(kernel_calls, name):
    mx.random.seed(1)
    compare(randomized(LAYERS[name]()), batch_size=2, steps=5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.standin(check=False)
def test_layers_agree_with_products_between_kernels(kernel_calls, name):
    mx.random.seed(1)
    with tuning.forced(None):
        compare(randomized(LAYERS[name]()), batch_size=2, steps=5)
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
def test_layers_agree_with_the_equations(kernel_calls, name):
    mx.random.seed(1)
    compare(randomized(LAYERS[name]()), batch_size=2, steps=5, other="reference")


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision(kernel_calls, dtype):
    # Rounding accumulates over the steps on both sides, in other ways: kernels round activations
    # once, plain operations before and after the bias. Each is held against float32 on the same
    # numbers, and over several of them the kernels may not lose more.
    errors = []  # [seeds, arrays, 2]
    for seed in range(4):
        mx.random.seed(seed)
        layer = randomized(TLSTM(4, 7, (3, 2), norm="channel"))
        layer.set_dtype(dtype)
        x, state, cotangents = inputs(layer, 2, 5)
        plain = results(layer, "ops", x, state, cotangents)
        kernels = results(layer, None, x, state, cotangents)
        layer.set_dtype(mx.float32)
        exact = results(
            layer, "ops", x, type(state)(*(a.astype(mx.float32) for a in state)), cotangents
        )
        errors.append([])
        for mine, theirs, truth in zip(*map(flat, (kernels, plain, exact)), strict=True):
            assert mine.dtype == theirs.dtype
            truth = np.array(truth)
            errors[-1].append((relative_error(mine, truth), relative_error(theirs, truth)))
    mine, theirs = np.sqrt(np.mean(np.square(errors), axis=0)).T
    unit = {mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}[dtype]
    assert np.all(mine < 1.2 * theirs + unit), (mine, theirs)


@pytest.mark.parametrize("name", ["two unequal axes", "no memory convolution", "tRNN"])
def test_recomputed_gradients_are_the_same_to_the_bit(kernel_calls, name):
    mx.random.seed(1)
    layer = randomized(LAYERS[name]())
    arguments = inputs(layer, 2, 5)
    _, kept = results(layer, None, *arguments)
    layer.cell.recompute = True
    _, computed = results(layer, None, *arguments)
    for (path, mine), (_, theirs) in zip(kept, computed, strict=True):
        assert mx.array_equal(mine, theirs), path


@pytest.mark.standin(mode="fast", check=False)
def test_one_step_at_the_papers_size(kernel_calls):
    """3D, L = 10, M = 100, batch 15, forward and backward, in the quick mode."""
    mx.random.seed(1)
    layer = randomized(TLSTM(65, 100, (10, 10), norm="channel"))
    cell, (x, state, _) = layer.cell, inputs(layer, 15, 1)
    cotangents = [mx.random.normal(array.shape) for array in state]

    def gradients(backend):
        cell.backend = backend

        def loss(parameters, x, state):
            cell.update(parameters)
            after = cell(x, state)
            return sum((a * c).sum() for a, c in zip(after, cotangents, strict=True)), after

        parameters = cell.parameters()
        (_, after), found = mx.value_and_grad(loss, argnums=(0, 1, 2))(parameters, x[:, 0], state)
        cell.update(parameters)
        mx.eval(after, found)
        return after, tree_flatten(found)

    expected, got = gradients("ops"), gradients(None)
    for mine, theirs in zip(got[0], expected[0], strict=True):
        assert relative_error(mine, np.array(theirs)) < VALUES
    for (name, mine), (_, theirs) in zip(got[1], expected[1], strict=True):
        assert relative_error(mine, np.array(theirs)) < GRADIENTS, name


@pytest.mark.standin(mode="fast", check=False)
def test_launches_of_a_time_step(kernel_calls):
    def launches(steps, recompute):
        layer = TLSTM(4, 7, (2, 3), norm="channel", recompute=recompute)
        kernel_calls.clear()
        results(layer, None, *inputs(layer, 2, steps))
        return Counter(call.kernel for call in counted(kernel_calls))

    # From 8 to 16 steps with the flush: one more launch of the weight gradient, which serves 8.
    step = launches(16 - 2, False) - launches(8 - 2, False)
    assert step == {
        "convolution_forward": 8,
        "memory_forward": 8,
        "memory_backward": 8,
        "convolution_input_gradient": 8,
        "convolution_weight_gradient": 1,
    }
    again = launches(16 - 2, True) - launches(16 - 2, False)
    assert again == {"convolution_forward": 16}


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_operations_of_a_time_step(dtype):
    """Of the compiled graph: kernels, products between them, and nothing else of a step's own."""
    layer = TLSTM(4, 7, (2, 3), norm="channel")
    layer.set_dtype(dtype)
    with tuning.forced(tiles.CANDIDATES[-1]):
        found = launches.of_a_step(layer, 2)
    stacks = found.pop("stack")
    assert stacks < 0.2
    assert found == {
        "convolution_forward": 1,
        "memory_forward": 1,
        "memory_backward": 1,
        "convolution_input_gradient": 1,
        "convolution_weight_gradient": 1 / 8,
    }
    with tuning.forced(None):
        found = launches.of_a_step(layer, 2)
    assert found.pop("stack") == stacks + 3 / 8  # of eight steps' arrays
    products = found.pop("AddMM") + found.pop("Matmul")
    assert products == 2 + 1 / 8
    assert found.pop("convolution_unfold") == 1 + 1 / 8
    assert {name: found.pop(name) for name in list(found) if "_" in name} == {
        "memory_forward": 1,
        "memory_backward": 1,
        "convolution_fold": 1,
    }
    # The bias' gradient; half precision is added up in float32.
    assert sum(found.values()) <= (2 if dtype == mx.float32 else 5) / 8, found


def test_the_kernels_can_be_compiled_into_a_larger_graph():
    """mx.compile traces the launches; nothing of them needs values, or depends on a closure."""
    layer = TLSTM(4, 7, (2, 3), norm="channel", recompute=True)
    x = mx.random.normal((2, 5, 4))

    def loss(parameters, x):
        layer.update(parameters)
        return layer(x)[0].sum()

    parameters = layer.parameters()
    with launches.recorded() as launched:
        gradients = mx.compile(mx.grad(loss))(parameters, x)
        layer.update(parameters)
    assert len(launched) > 5 * 4
    shapes = [(name, array.shape) for name, array in tree_flatten(gradients)]
    assert shapes == [(name, array.shape) for name, array in tree_flatten(parameters)]


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
@pytest.mark.parametrize("name", ["two unequal axes", "tRNN"])
def test_gradient_in_evaluation_mode_runs_forward_again(kernel_calls, name):
    mx.random.seed(1)
    layer = randomized(LAYERS[name]())
    arguments = inputs(layer, 2, 5)
    expected = flat(results(layer, None, *arguments))
    layer.eval()
    for mine, theirs in zip(flat(results(layer, None, *arguments)), expected, strict=True):
        assert mx.array_equal(mine, theirs)


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
        return nn.value_and_grad(model, loss)(model, symbols)

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


class TestSelection:
    def test_plain_operations_on_the_cpu(self):
        assert dispatch.select_backend("TLSTM", None, 2) == "ops"

    def test_the_equations_run_everywhere(self, monkeypatch):
        assert dispatch.select_backend("TLSTM", "reference", 4) == "reference"
        monkeypatch.setenv("MLX_TLSTM_BACKEND", "reference")
        cell = TLSTM(4, 7, (3,)).cell
        assert cell.selected_backend() == "reference"
        assert isinstance(cell.active_transition(2).backend, ReferenceBackend)

    def test_kernels_where_the_device_has_them(self, kernel_calls):
        chosen = dispatch.select_backend("TLSTM", None, 2)
        assert chosen in ("metal", "cuda")
        assert dispatch.select_backend("TLSTM", chosen, 3) == chosen
        assert dispatch.select_backend("TLSTM", "ops", 2) == "ops"

    def test_more_axes_than_the_kernels_take(self, kernel_calls):
        assert dispatch.select_backend("TLSTM", None, 4) == "ops"
        layer = TLSTM(2, 3, (1, 2, 1, 2), backend="metal")
        with pytest.raises(
            ValueError, match=r"\[TLSTMCell\] 'backend' must be 'ops' or 'reference' here .*3 ten"
        ):
            layer(mx.zeros((1, 2, 2)))

    def test_environment_variable(self, kernel_calls, monkeypatch):
        monkeypatch.setenv("MLX_TLSTM_BACKEND", "ops")
        assert dispatch.select_backend("TLSTM", None, 2) == "ops"
        monkeypatch.setenv("MLX_TLSTM_BACKEND", "vulkan")
        message = "'MLX_TLSTM_BACKEND' must be one of .*'cuda', 'reference' but got 'vulkan'"
        with pytest.raises(ValueError, match=message):
            dispatch.select_backend("TLSTM", None, 2)

    @pytest.mark.parametrize("backend", ["metal", "cuda"])
    def test_what_the_machine_lacks(self, backend):
        layer = make_layer("2d-tlstm", 4, 7, 3, backend=backend)
        message = r"'backend' must be 'ops' or 'reference' here \(the default device is .*cpu"
        with pytest.raises(ValueError, match=message):
            layer(mx.zeros((2, 5, 4)))

    def test_the_environment_may_not_ask_for_it_either(self, monkeypatch):
        monkeypatch.setenv("MLX_TLSTM_BACKEND", "metal")
        with pytest.raises(
            ValueError, match="'MLX_TLSTM_BACKEND' must be 'ops' or 'reference' here"
        ):
            TLSTM(4, 7, (3,))(mx.zeros((2, 5, 4)))

    def test_unknown_names(self):
        message = "'backend' must be one of None, 'ops', 'metal', 'cuda', 'reference' but got 'gpu'"
        with pytest.raises(ValueError, match=message):
            TLSTM(4, 7, (3,), backend="gpu")

    @pytest.mark.parametrize(
        ("architecture", "runs"),
        [
            ("applegpu_g13g", True),
            ("applegpu_g17p", True),
            ("applegpu_g12x", False),
            ("applegpu_g5p", False),
            ("air64_v26", True),
            ("", True),
        ],
    )
    def test_apple_gpus_known_to_be_old_run_plain_operations(self, monkeypatch, architecture, runs):
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
        monkeypatch.setattr(mx, "device_info", lambda: {"architecture": architecture})
        monkeypatch.setattr(mx.metal, "is_available", lambda: True)
        monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
        expected = "metal" if runs else "ops"
        assert dispatch.select_backend("TLSTM", None, 2) == expected

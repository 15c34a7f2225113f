"""Recurrent: a cell of one's own under the contract of our layers."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from comparison import assert_close, values_and_gradients
from layer_helpers import GRU, plain_loop
from mlx import nn, optimizers
from mlx.utils import tree_map

from mlx_tlstm import (
    TLSTM,
    Recurrent,
    SequenceModel,
    StackedLSTM,
    StreamingSession,
    TLSTMCell,
)
from mlx_tlstm.models.generation import generate
from mlx_tlstm.tasks import Memorization
from mlx_tlstm.training import encode, evaluate
from mlx_tlstm.visualize import draw_receptive_field, record
from mlx_tlstm.visualize.sensitivity import input_reach, receptive_field

B, T, R, M, S = 2, 6, 3, 5, 4


class Cell(GRU):
    def __init__(self, input_size=R, hidden_size=M):
        super().__init__(input_size, hidden_size)
        self.width = hidden_size

    def initial_state(self, batch_size):
        return mx.zeros((batch_size, self.width))


class Memories(NamedTuple):
    short: mx.array
    long: list


class Two(nn.Module):
    """An output, a state of arrays of several sizes, and a number of steps."""

    hidden_size, input_size = 2, R

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(R + 3, 3)

    def __call__(self, x, state):
        short = mx.tanh(self.mix(mx.concatenate([x, state.short], axis=-1)))
        long, count = state.long
        long = 0.9 * long + short[:, :1]
        return short[:, :2] * long, Memories(short, [long, count + 1])

    def initial_state(self, batch_size):
        return Memories(mx.zeros((batch_size, 3)), [mx.zeros((batch_size, 1)), mx.array(0)])


def layer_and_inputs(cell=Cell, **options):
    mx.random.seed(1)
    return Recurrent(cell(), **options), mx.random.normal((B, T, R))


def by_steps(layer, x, state=None):
    state = layer.cell.initial_state(x.shape[0]) if state is None else state
    state, ys = plain_loop(lambda h, x: layer.cell(x, h)[::-1], state, x.swapaxes(0, 1))
    return ys.swapaxes(0, 1), state


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cell", [Cell, Two])
@pytest.mark.parametrize("checkpoint", [None, 2])
def test_call_stream_trace_and_chunks(cell, checkpoint, training):
    layer, x = layer_and_inputs(cell, checkpoint=checkpoint)
    layer.train(training)
    expected, last = by_steps(layer, x)
    y, state = layer(x)
    assert layer.delay == 0
    assert_close((y, state), (expected, last), 1e-5)
    assert_close(layer.stream(x), (expected, last), 1e-5)
    first, state = layer(x[:, :2])
    rest, state = layer(x[:, 2:], state)
    assert_close((mx.concatenate([first, rest], axis=1), state), (expected, last), 1e-5)
    one, state = layer(x[0])
    assert_close(one, expected[0], 1e-5)
    assert tree_map(lambda a: a.shape[:1], state) == tree_map(
        lambda a: a.shape[:1], layer.initial_state(1)
    )
    trace = layer.trace(x)
    assert_close(trace.outputs, expected, 1e-5)
    assert trace.residuals is None
    assert_close(tree_map(lambda a: a[:, -1] if a.ndim > 1 else a[-1], trace.states), last, 1e-5)
    state = layer.initial_state(B)
    for t in range(T):
        _, state = layer.cell(x[:, t], state)
        at_t = tree_map(lambda a, t=t: a[:, t] if a.ndim > 1 else a[t], trace.states)
        assert_close(at_t, state, 1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("checkpoint", [None, 3])
def test_gradients(checkpoint, training):
    layer, x = layer_and_inputs(checkpoint=checkpoint)
    layer.train(training)
    state = mx.random.normal((B, M))

    expected = values_and_gradients(layer, partial(by_steps, layer), x, state)
    assert_close(values_and_gradients(layer, layer, x, state), expected, 1e-5)


def test_no_output_depends_on_a_later_input():
    layer, x = layer_and_inputs()
    changed = mx.concatenate([x[:, :3], x[:, 3:] + 1], axis=1)
    assert mx.array_equal(layer(changed)[0][:, :3], layer(x)[0][:, :3])
    assert layer.causal
    field = receptive_field(layer, x[0], probes=1)
    assert np.array_equal(field != 0, np.tril(np.ones((T, T), bool)))
    assert input_reach(layer, x[0]).shape == (T, 1)
    draw_receptive_field(field)


@pytest.mark.parametrize("cell", [Cell, Two])
def test_a_model_a_session_and_a_recording(cell):
    layer, x = layer_and_inputs(cell)
    model = SequenceModel(layer, S).eval()
    logits, _ = model(x)
    assert logits.shape == (B, T, S)
    assert model.causal
    session = StreamingSession(model)
    assert session.delay == 0
    answers = [session.push(x[:, t]) for t in range(T)]
    assert session.flush() == []
    assert mx.allclose(mx.stack(answers, axis=1), logits, atol=1e-5)
    recording = record(layer, x)
    assert (recording.layer, recording.delay) == (cell.__name__, 0)
    assert recording.hidden.shape[:3] == (B, T, 1)
    assert np.array_equal(recording.hidden[:, :, 0], recording.outputs)
    assert recording.cell is None
    names = [""] if cell is Cell else ["short", "long[0]", "long[1]"]
    assert list(recording.states) == names
    assert np.allclose(recording.outputs, by_steps(layer, x)[0], atol=1e-6)


def test_training_compiled_and_evaluating_on_a_task_of_ours():
    task = Memorization(replace(Memorization.quick(), length=2, batch_size=16, samples=1600))
    mx.random.seed(0)
    layer = Recurrent(Cell(task.input_size, 24), checkpoint=3)
    model = SequenceModel(layer, task.output_size)
    adam = optimizers.Adam(1e-2)

    def loss_of(model, x, targets):
        logits = model(x)[0][:, task.loss_positions]
        return nn.losses.cross_entropy(logits, targets[:, task.loss_positions]).mean()

    gradient = nn.value_and_grad(model, loss_of)
    state = [model.state, adam.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x, targets):
        loss, gradients = gradient(model, x, targets)
        adam.update(model, gradients)
        return loss

    losses = []
    for number in range(task.train_steps):
        batch = task.train_batch(number)
        x = encode(batch.inputs, task.input_size, layer.dtype)
        losses.append(step(x, mx.array(batch.targets)).item())
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    metrics = evaluate(model, task, "test")
    assert metrics["loss"] < losses[0]


def test_generation():
    mx.random.seed(0)
    model = SequenceModel(Recurrent(Cell(S, M)), S).eval()
    symbols = list(generate(model, [0, 1], 5, temperature=0))
    x = mx.eye(S)[mx.array([0, 1, *symbols])]
    expected = mx.argmax(model(x)[0], axis=-1)
    assert symbols == expected[1:-1].tolist()


def test_export_in_evaluation_mode(tmp_path):
    layer, x = layer_and_inputs()
    layer.eval()
    expected = layer(x)
    file = str(tmp_path / "layer.mlxfn")
    mx.export_function(file, layer, x)
    assert_close(list(mx.import_function(file)(x)), list(expected), 1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision(dtype):
    layer, x = layer_and_inputs()
    model = SequenceModel(layer, S)
    model.set_dtype(dtype)
    assert layer.dtype == dtype
    state = layer.initial_state(B).astype(dtype)
    with pytest.raises(ValueError, match=r"\[Recurrent\] 'state' must be of shape .*float32 as"):
        layer(x.astype(dtype), state)
    # The cell's own state is float32, and so are its outputs then.
    assert layer(x.astype(dtype))[0].dtype == mx.float32


class Halves(Cell):
    """Its state has its weights' type."""

    def initial_state(self, batch_size):
        return super().initial_state(batch_size).astype(self.from_past.weight.dtype)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_inputs_get_the_weights_type(dtype):
    """As our own layers' do: symbols and users' arrays are float32."""
    model = SequenceModel(Recurrent(Halves(S, M)), S)
    model.set_dtype(dtype)
    model.eval()
    x = mx.eye(S)[mx.array([[0, 2, 1]])]
    logits = model(x)[0]
    assert logits.dtype == dtype
    session = StreamingSession(model)
    pushes = mx.stack([session.push(x[:, t]) for t in range(3)], axis=1)
    assert mx.allclose(pushes, logits, atol=0.02)
    assert record(model.layer, x).hidden.shape == (1, 3, 1, M)
    assert len(list(generate(model, [0, 2, 1], 4))) == 4


def test_inputs_of_a_cell_without_weights_stay():
    class Sum(nn.Module):
        input_size = hidden_size = 2

        def initial_state(self, batch_size):
            return mx.zeros((batch_size, 2), mx.float16)

        def __call__(self, x, state):
            return state + x, state + x

    assert Recurrent(Sum())(mx.ones((1, 3, 2), mx.float16))[0].dtype == mx.float16


def test_saving_is_refused_and_says_what_to_do(tmp_path):
    layer, x = layer_and_inputs()
    model = SequenceModel(layer, S)
    with pytest.raises(
        ValueError, match=r"make_layer.*Recurrent.*nothing was written.*save_weights\(FILE\)"
    ):
        model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    file = str(tmp_path / "weights.safetensors")
    model.save_weights(file)
    again = SequenceModel(Recurrent(Cell()), S)
    again.load_weights(file)
    assert mx.array_equal(again(x)[0], model(x)[0])


class NoState(nn.Module):
    def __call__(self, x, state):
        return x, state


class From(NoState):
    """A cell whose initial state is what a function of the batch size makes."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def initial_state(self, batch_size):
        return self.make(batch_size)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda B: mx.zeros((4, B, M)), r"'initial_state' must be .* \(4, 1, 5\) and \(4, 2, 5\)"),
        (lambda B: mx.zeros((1, B, M)), r"'initial_state' must be an array"),
        (
            lambda B: (mx.zeros((B, M)), {"mean": mx.zeros((3,))}),
            r"'initial_state\[1\]\.mean' must",
        ),
        (lambda B: mx.zeros((1, M)), "'initial_state' must be an array"),
        (lambda B: mx.zeros((2 * B, M)), "'initial_state' must be an array"),
        (lambda B: mx.zeros((B, B)), "'initial_state' must be an array"),
        (lambda B: mx.zeros((B, M) if B > 1 else ()), "'initial_state' must be an array"),
        (lambda B: [mx.zeros((M,))] * B, "'initial_state' must be of the same arrays"),
        (lambda B: {f"{B}": mx.zeros((B, M))}, "'initial_state' must be of the same arrays"),
        (lambda B: np.zeros((B, M)), r"'initial_state' must be an mx\.array, None"),
    ],
)
def test_a_state_that_cannot_be_cut_into_sequences_is_refused(make, message):
    with pytest.raises(ValueError, match=rf"\[Recurrent\] {message}"):
        Recurrent(From(make))


@pytest.mark.parametrize(
    "make",
    [
        lambda B: None,
        lambda B: {},
        lambda B: mx.array(0),
        lambda B: mx.zeros((B,)),
        lambda B: (
            mx.zeros((B, 1, 2)),
            [mx.array(1.0), {"none": None, "flags": mx.zeros((B,), mx.bool_)}],
        ),
    ],
)
def test_a_state_of_sequences_and_numbers_is_taken(make):
    x = mx.random.normal((B, T, R))
    y, state = Recurrent(From(make))(x)
    assert mx.array_equal(y, x)
    assert str(state) == str(make(B))


@pytest.mark.parametrize(
    "cell",
    [
        *(3, nn.Linear(2, 2), NoState(), Cell, lambda x, state: (x, state)),
        *(TLSTMCell(R, M, 2), StackedLSTM(R, M, 2), TLSTM(R, M, 2), Recurrent(Two())),
    ],
)
def test_what_is_no_cell(cell):
    with pytest.raises(ValueError, match=r"\[Recurrent\] 'cell' must be (an nn\.Module with|a ce)"):
        Recurrent(cell)


def test_errors_name_the_argument():
    layer, x = layer_and_inputs(Two)
    for wrong, message in (
        (
            x[..., :2],
            r"'x' must be of shape \[B, T, R\] or \[T, R\] with input size 3",
        ),
        (x[0, 0], r"'x' must be of shape"),
        (x[:, :0], r"'x' must be of shape"),
        (np.zeros((B, T, R)), r"'x' must be an mx\.array"),
    ):
        with pytest.raises(ValueError, match=rf"\[Recurrent\] {message}"):
            layer(wrong)
    state = layer.initial_state(B)
    for wrong, message in (
        (layer.initial_state(B + 1), r"'state\.short' must be of shape \(2, 3\) .* as the cell's"),
        (tuple(state), r"'state' must be a Memories as the cell's initial_state"),
        (state._replace(long=[]), r"'state\.long' must be a list of length 2"),
    ):
        with pytest.raises(ValueError, match=rf"\[Recurrent\] {message}"):
            layer(x, wrong)
    with pytest.raises(ValueError, match="'checkpoint' must be an integer of 1 or more"):
        Recurrent(Cell(), checkpoint=0)
    with pytest.raises(ValueError, match="'batch_size' must be an integer of 1 or more"):
        layer.initial_state(0)


class Faulty(Cell):
    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def __call__(self, x, state):
        return self.fault(*super().__call__(x, state))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda y, h: h, r"'cell' must be a module that returns \(output, state\)"),
        (lambda y, h: (None, h), r"'output' must be an mx\.array \[2, M\] but got None"),
        (lambda y, h: (y[:1], h), r"'output' must be an mx\.array \[2, M\] but got \(1, 5\)"),
        (
            lambda y, h: (y[:, None], h),
            r"'output' must be an mx\.array \[2, M\] but got \(2, 1, 5\)",
        ),
        (lambda y, h: (y[:, 0], h), r"'output' must be an mx\.array \[2, M\] but got \(2,\)"),
        (lambda y, h: (y, h[:, 1:]), r"'state' must be of shape \(2, 5\) .* after each step"),
    ],
)
def test_a_cell_that_does_something_else(fault, message):
    _, x = layer_and_inputs()
    with pytest.raises(ValueError, match=rf"\[Recurrent\] {message}"):
        Recurrent(Faulty(fault))(x)


def test_outputs_of_another_width():
    """A cell may make them as it likes, but one that names a width, or has a read-out, keeps it."""
    _, x = layer_and_inputs()
    layer = Recurrent(Faulty(lambda y, h: (y[:, 1:], h)))
    assert layer(x)[0].shape[-1] == M - 1
    with pytest.raises(
        ValueError, match=r"\[SequenceModel\] 'layer' must be one whose outputs .*5"
    ):
        SequenceModel(layer, 3)(x)
    layer.cell.hidden_size = M
    with pytest.raises(
        ValueError, match=r"'output' must be an mx\.array \[2, 5\] but got \(2, 4\)"
    ):
        layer(x)


class Caching(Cell):
    def __call__(self, x, state):
        self.cached = state * 1.0
        return super().__call__(x, state)


class Hiding(Cell):
    def __call__(self, x, state):
        y, state = super().__call__(x, state * self.by_name())
        return y, state

    def by_name(self):
        return globals()["HID" + "DEN"]


def test_errors_of_checkpoints_name_the_cell(monkeypatch):
    layer, x = layer_and_inputs(Caching, checkpoint=2)
    with pytest.raises(ValueError, match=r"\[Recurrent\] 'cell' must leave the arrays"):
        layer(x)
    layer, x = layer_and_inputs(Hiding, checkpoint=2)

    def loss(hidden):
        monkeypatch.setitem(globals(), "HIDDEN", hidden)
        return layer(x)[0].sum()

    with pytest.raises(ValueError, match=r"\[Recurrent\] 'cell' must read arrays from where"):
        mx.grad(loss)(mx.array(1.0))


def test_the_width_of_a_read_out():
    layer, _ = layer_and_inputs(Two)
    assert SequenceModel(layer, S).readout.weight.shape == (S, 2)
    assert Recurrent(Cell()).hidden_size == M
    assert Recurrent(Cell()).input_size is None
    cell = Two()
    cell.hidden_size = None
    with pytest.raises(ValueError, match=r"'cell\.hidden_size' must be set to the width"):
        SequenceModel(Recurrent(cell), S)

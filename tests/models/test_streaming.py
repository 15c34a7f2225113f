"""Inputs one by one give what the whole sequence gives, ``delay`` pushes later."""

from __future__ import annotations

import copy
import io
import pickle

import mlx.core as mx
import numpy as np
import pytest
from layer_helpers import OUR_VARIANTS

from mlx_tlstm import SequenceModel, StreamingSession, make_layer
from mlx_tlstm.layers.base import DTYPES
from mlx_tlstm.recurrence.compilation import CompiledFunction

BATCH, STEPS, INPUT, HIDDEN, CLASSES = 2, 9, 5, 7, 4
#: The sums of matrix products of one step's rows and of all steps' are rounded in another order.
TOLERANCE = {"float32": 1e-6, "float16": 4e-3, "bfloat16": 3e-2}


def build(variant, depth, dtype="float32"):
    mx.random.seed(2)
    model = SequenceModel(make_layer(variant, INPUT, HIDDEN, depth), CLASSES)
    model.set_dtype(getattr(mx, dtype))
    return model.eval()


def pushed(session, x):
    """All outputs over ``x`` ``[B, T, R]``, and how many came before the flush."""
    outputs = [session.push(x[:, t]) for t in range(x.shape[1])]
    given = [y for y in outputs if y is not None]
    assert outputs[: len(outputs) - len(given)] == [None] * (len(outputs) - len(given))
    return given + session.flush(), len(given)


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        *((name, "float32") for name, variant in OUR_VARIANTS.items() if variant.is_causal(4)),
        *(("3d-tlstm+cn", dtype) for dtype in DTYPES[1:]),
    ],
)
def test_pushes_and_flush_are_the_whole(variant, dtype, depth):
    model = build(variant, depth, dtype)
    x = mx.random.normal((BATCH, STEPS, INPUT))
    expected, _ = model(x)
    session = StreamingSession(model)
    assert session.delay == (0 if variant == "slstm" else depth - 1)
    for _ in range(2):
        outputs, early = pushed(session, x)
        assert early == STEPS - session.delay
        assert len(outputs) == STEPS
        got = mx.stack(outputs, axis=1)
        assert got.dtype == expected.dtype
        tolerance = TOLERANCE[dtype]
        assert mx.allclose(got, expected, rtol=tolerance, atol=tolerance)
        session.reset()


@pytest.mark.parametrize("variant", ["2d-tlstm+ln", "3d-tlstm+ln"])
def test_layer_normalization_is_the_same_steps_too(variant):
    # The steps are those of the whole sequence, the flush included; only chunks differ.
    model = build(variant, depth=3)
    x = mx.random.normal((BATCH, STEPS, INPUT))
    outputs, _ = pushed(StreamingSession(model), x)
    assert mx.allclose(mx.stack(outputs, axis=1), model(x)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_short_sequences(steps):
    model = build("2d-tlstm+cn", depth=4)
    x = mx.random.normal((BATCH, 4, INPUT))
    session = StreamingSession(model)
    given = [session.push(x[:, t]) for t in range(steps)]
    rest = session.flush()
    assert [y is None for y in given] == [t < 3 for t in range(steps)]
    outputs = [y for y in given if y is not None] + rest
    assert len(outputs) == steps
    for t, output in enumerate(outputs):
        expected = model(x[:, :steps])[0][:, t]
        assert mx.allclose(output, expected, rtol=1e-6, atol=1e-6)


def test_without_a_batch_axis():
    model = build("3d-tlstm", depth=2)
    x = mx.random.normal((STEPS, INPUT))
    session = StreamingSession(model)
    outputs = [session.push(row) for row in x]
    assert outputs[0] is None
    assert outputs[1].shape == (CLASSES,)
    got = mx.stack(outputs[1:] + session.flush())
    assert mx.allclose(got, model(x)[0], rtol=1e-6, atol=1e-6)


def test_an_input_costs_one_step(monkeypatch):
    """One step's work each, whatever came before, and memory that does not grow with it."""
    model = build("2d-tlstm+cn", depth=5)
    steps, traced = [], []
    stream, call = type(model.layer).stream, CompiledFunction.__call__

    def recorded(layer, x, state=None):
        traced.append(x.shape[-2])
        return stream(layer, x, state)

    def counted(function, *arguments):
        steps.append(function)
        return call(function, *arguments)

    monkeypatch.setattr(type(model.layer), "stream", recorded)
    monkeypatch.setattr(CompiledFunction, "__call__", counted)
    session = StreamingSession(model)
    x = mx.random.normal((BATCH, INPUT))
    sizes = []
    for count in range(300):
        y = session.push(x)
        if y is not None:
            mx.eval(y)
        if count in (99, 299):
            del y
            sizes.append(mx.get_active_memory())
    session.flush()
    assert len(steps) == 300 + 4
    assert len(set(steps)) == 1, "one graph"
    assert traced == [1, 1], "without and with a state"
    state = sum(array.nbytes for array in model.layer.cell.initial_state(BATCH))
    assert sizes[1] - sizes[0] < 20 * state  # of 200 steps


def test_unread_outputs_keep_no_graph():
    model = build("2d-tlstm", depth=3)
    session = StreamingSession(model)
    x = mx.random.normal((BATCH, INPUT))

    def nodes():
        mx.synchronize()
        graph = io.StringIO()
        mx.export_to_dot(graph, *session._state)
        return graph.getvalue().count("->")

    counts = []
    for _ in range(3):
        session.push(x)
        counts.append(nodes())
    assert counts == [counts[0]] * 3


def test_refusals():
    model = build("2d-tlstm", depth=2)
    with pytest.raises(ValueError, match="'model' must be a SequenceModel"):
        StreamingSession(model.layer)
    session = StreamingSession(model)
    for x in (mx.zeros((1, 2, INPUT)), [0.0] * INPUT, np.zeros(INPUT), mx.array(1.0)):
        with pytest.raises(
            ValueError, match=r"'x' must be an mx\.array of shape \[B, R\] or \[R\]"
        ):
            session.push(x)
    with pytest.raises(ValueError, match=r"'x' must be of shape .* with input size 5"):
        session.push(mx.zeros((BATCH, INPUT + 1)))
    with pytest.raises(ValueError, match="'x' must be of a floating-point dtype"):
        session.push(mx.zeros((BATCH, INPUT), mx.int32))
    session.push(mx.zeros((BATCH, INPUT)))  # what was refused left no trace
    for shape in ((BATCH + 1, INPUT), (INPUT,)):
        with pytest.raises(ValueError, match=r"'x' must be of shape \(2, 5\) as the inputs before"):
            session.push(mx.zeros(shape))
    assert session.push(mx.zeros((BATCH, INPUT))) is not None
    session.flush()
    for ended in (session.flush, lambda: session.push(mx.zeros((BATCH, INPUT)))):
        with pytest.raises(ValueError, match="'session' must be reset after flush"):
            ended()
    session.reset()
    assert session.push(mx.zeros((1, INPUT))) is None


def test_a_session_in_another_process_goes_on():
    model, x = build("2d-tlstm+cn", 3), mx.random.normal((BATCH, STEPS, INPUT))
    session = StreamingSession(model)
    for t in range(5):
        session.push(x[:, t])
    others = pickle.loads(pickle.dumps(session)), copy.deepcopy(session)
    expected = session.push(x[:, 5])
    assert all(mx.array_equal(other.push(x[:, 5]), expected) for other in others)

"""Recordings against traces, and the drawings' numbers, texts and manners."""

from __future__ import annotations

import dataclasses
import io
import xml.etree.ElementTree

import matplotlib
import mlx.core as mx
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from mlx.utils import tree_flatten

from mlx_tlstm import TLSTM, TRNN, SequenceModel, StackedLSTM
from mlx_tlstm.visualize import (
    Recording,
    arrival_steps,
    channel_means,
    diagonal,
    diagonal_means,
    draw_arrival,
    draw_diagonal,
    draw_memory_maps,
    draw_memory_offsets,
    draw_receptive_field,
    input_reach,
    memory_offsets,
    receptive_field,
    record,
)

R, M, B, T = 4, 7, 2, 5
LAYERS = {
    "one axis": lambda: TLSTM(R, M, 3),
    "two axes": lambda: TLSTM(R, M, (2, 3), (3, 2), norm="channel"),
    "three axes": lambda: TLSTM(R, M, (2, 3, 2), norm="layer"),
    "no memory convolution": lambda: TLSTM(R, M, (2, 2), memory_convolution=False),
    "tRNN": lambda: TRNN(R, M, (3, 2)),
    "stacked": lambda: StackedLSTM(R, M, 3),
}


def build(name, dtype=mx.float32):
    mx.random.seed(3)
    layer = LAYERS[name]()
    layer.set_dtype(dtype)
    return layer, mx.random.normal((B, T, R))


def recording_of(name):
    return record(*build(name))


def image_of(figure, number=0):
    return np.ma.filled(figure.axes[0].images[number].get_array(), np.nan)


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_record_is_the_trace_and_leaves_the_layer_alone(name, training):
    layer, x = build(name)
    layer.train(training)
    before = {key: np.array(value) for key, value in tree_flatten(layer.parameters())}
    key = [np.array(part) for part in mx.random.state]
    recording = record(layer, x)
    assert layer.training is training
    assert layer.cell.training is training
    after = dict(tree_flatten(layer.parameters()))
    assert after.keys() == before.keys()
    for parameter, value in before.items():
        np.testing.assert_array_equal(np.array(after[parameter]), value)
    np.testing.assert_array_equal([np.array(part) for part in mx.random.state], key)

    trace = layer.trace(x)
    assert recording.steps == T + layer.delay
    assert recording.batch_size == B
    assert (recording.layer, recording.delay) == (type(layer).__name__, layer.delay)
    np.testing.assert_array_equal(recording.outputs, np.array(trace.outputs))
    np.testing.assert_array_equal(recording.hidden, np.array(trace.states.hidden))
    if name == "tRNN":
        assert recording.cell is recording.forget_gate is recording.kernels is None
        return
    np.testing.assert_array_equal(recording.cell, np.array(trace.states.cell))
    gates = (
        recording.new_content,
        recording.input_gate,
        recording.forget_gate,
        recording.output_gate,
    )
    for letter, gate in zip("GIFO", gates, strict=True):
        residuals = trace.residuals
        if name == "stacked":
            expected = np.stack([np.array(getattr(r, letter)) for r in residuals], axis=2)
        else:
            expected = np.array(getattr(residuals, letter))
        assert gate.shape == recording.hidden.shape
        np.testing.assert_array_equal(gate, expected)


@pytest.mark.parametrize(
    ("name", "kernel_size"), [("one axis", (3,)), ("two axes", (3, 2)), ("three axes", (3, 3, 3))]
)
def test_kernels_are_softmax_kernels(name, kernel_size):
    layer, x = build(name)
    recording = record(layer, x)
    lead = (B, recording.steps, *recording.tensor_size)
    assert recording.kernels.shape == (*lead, *kernel_size)
    np.testing.assert_allclose(recording.kernels.reshape(*lead, -1).sum(axis=-1), 1, rtol=1e-6)
    flat = np.array(layer.trace(x).residuals.Q)
    np.testing.assert_array_equal(recording.kernels.reshape(flat.shape), flat)
    assert recording_of("no memory convolution").kernels is None


def test_record_takes_a_state_one_sequence_and_half_precision():
    layer, x = build("two axes")
    state = layer(x)[1]
    going_on = record(layer, x, state)
    np.testing.assert_array_equal(going_on.cell, np.array(layer.trace(x, state).states.cell))
    assert (going_on.cell != record(layer, x).cell).any()
    assert record(layer, x[0]).hidden.shape == (1, T + layer.delay, 2, 3, M)
    half, x = build("two axes", mx.bfloat16)
    recording = record(half, x)
    assert recording.hidden.dtype == recording.kernels.dtype == np.float32


def test_diagonal():
    assert [index.tolist() for index in diagonal((4,))] == [[0, 1, 2, 3]]
    assert [index.tolist() for index in diagonal((3, 3))] == [[0, 1, 2], [0, 1, 2]]
    assert [index.tolist() for index in diagonal((2, 4))] == [[0, 0, 1, 1], [0, 1, 2, 3]]
    assert [index.tolist() for index in diagonal((1, 1))] == [[0], [0]]


def test_means_are_those_of_the_trace():
    layer, x = build("two axes")
    cell = np.array(layer.trace(x).states.cell)
    recording = record(layer, x)
    np.testing.assert_allclose(channel_means(recording), cell.mean(axis=-1), rtol=1e-6)
    expected = [cell[:, :, p, q].mean(axis=-1) for p, q in ((0, 0), (0, 1), (1, 2))]
    np.testing.assert_allclose(diagonal_means(recording), np.stack(expected, axis=-1), rtol=1e-6)


@pytest.mark.parametrize("offset", [-1, 0])
@pytest.mark.parametrize("tensor_size", [(4,), (3, 2)])
def test_memory_offsets_of_forced_kernels(offset, tensor_size):
    """Locations past the first read from their neighbour; the first can only read itself."""
    layer = TLSTM(R, M, tensor_size)
    geometry = layer.cell.geometry
    place = [K // 2 + offset for K in geometry.kernel_size]
    tap = np.ravel_multi_index(place, geometry.kernel_size)
    layer.cell.weight[4 * M :] = 0
    layer.cell.bias[4 * M + tap] = 100.0  # the softmax has one tap left
    offsets = memory_offsets(record(layer, mx.random.normal((B, T, R))))
    assert offsets.shape == (B, T + layer.delay, *tensor_size, len(tensor_size))
    for axis in range(len(tensor_size)):
        along = np.moveaxis(offsets[..., axis], 2 + axis, -1)
        np.testing.assert_allclose(along[..., 1:], offset, atol=1e-6)
        np.testing.assert_allclose(along[..., 0], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ([0.25, 0.75], [0, -0.25, -0.25]),  # K = 2 has the taps -1 and 0
        ([0.125, 0.25, 0.625], [0.625, 0.5, -0.125]),
        ([0.5, 0, 0, 0.5], [0.5, 0, -1]),  # K = 4: -2 … 1
    ],
)
def test_memory_offsets_at_both_ends(kernel, expected):
    """Taps beyond the three locations read the boundary."""
    zeros = np.zeros((1, 1, 3, M), dtype=np.float32)
    kernels = np.full((1, 1, 3, len(kernel)), kernel, dtype=np.float32)
    recording = Recording("TLSTM", 0, zeros[:, :, 0], zeros, kernels=kernels)
    np.testing.assert_allclose(memory_offsets(recording)[0, 0, :, 0], expected)


@pytest.mark.parametrize("name", LAYERS)
def test_receptive_field_is_causal(name):
    layer, x = build(name)
    field = receptive_field(layer, x[0])
    assert field.shape == (T, T)
    # With layer normalisation an output sees all that was read when it comes out.
    ahead = layer.delay if name == "three axes" else 0
    np.testing.assert_array_equal(field > 0, np.tril(np.ones((T, T), dtype=bool), ahead))


def test_receptive_field_is_the_norm_of_the_gradient():
    """One input channel: exact. More: the estimate nears it with the probes."""
    mx.random.seed(1)
    layer = TLSTM(1, 3, (2, 2), norm="channel")
    x = mx.random.normal((4, 1))
    jacobian = np.stack([gradient(layer, x, m) for m in range(3)])  # [M, T, T, R]
    exact = np.sqrt((jacobian**2).sum(axis=(0, -1)))
    np.testing.assert_allclose(receptive_field(layer, x, probes=1), exact, rtol=1e-4)
    layer, x = TLSTM(R, 3, 2), mx.random.normal((4, R))
    jacobian = np.stack([gradient(layer, x, m) for m in range(3)])
    exact = np.sqrt((jacobian**2).sum(axis=(0, -1)))
    seen = exact > 0
    error = receptive_field(layer, x, probes=64)[seen] / exact[seen] - 1
    assert abs(error).max() < 0.3  # deviation below 1/sqrt(2 · 64) = 0.09 each


def gradient(layer, x, channel):
    """d y[t, channel] / d x[s], ``[t, s, R]``, by reverse mode through a plain call."""
    rows = [mx.grad(lambda x, t=t: layer(x)[0][t, channel])(x) for t in range(len(x))]
    return np.stack([np.array(row) for row in rows]).astype(np.float64)


def test_receptive_field_in_parts_is_the_same(monkeypatch):
    layer, x = build("two axes")
    layer.cell.input_projection.weight = layer.cell.input_projection.weight[:, :1]
    layer.cell.input_size = 1  # exact, whatever the probes
    whole = receptive_field(layer, x[0, :, :1])
    monkeypatch.setattr("mlx_tlstm.visualize.sensitivity._STATE_ELEMENTS", 1)
    np.testing.assert_allclose(receptive_field(layer, x[0, :, :1]), whole, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda: TLSTM(R, M, 4), [1, 2, 3, 4]),
        (lambda: TLSTM(R, M, 4, 5), [1, 1, 2, 2]),
        (lambda: TLSTM(R, M, (2, 3), norm="channel"), [[1, 2, 3], [2, 2, 3]]),
        (lambda: TRNN(R, M, 3, 2), [1, 2, 3]),
        (lambda: StackedLSTM(R, M, 3), [1, 1, 1]),
        (lambda: TLSTM(R, M, 3, norm="layer"), [1, 1, 1]),
    ],
)
def test_an_input_arrives_after_the_delay(layer, expected):
    layer = layer()
    steps = arrival_steps(input_reach(layer, mx.random.normal((T, R))))
    assert steps.tolist() == expected
    if getattr(layer.cell, "norm", None) is None or len(np.shape(expected)) == 2:
        assert steps.ravel()[-1] == layer.delay + 1


def test_what_never_arrives():
    assert arrival_steps(np.array([[0.0, 0.0], [2.0, 0.0]])).tolist() == [2, 0]


SYMBOLS = list("ab$_-")


def drawings(axes=None):
    """Every drawing by name, with ``axes``."""
    recording, field = recording_of("two axes"), np.tril(np.ones((T, T)))
    return {
        "diagonal": lambda: draw_diagonal(recording, 1, SYMBOLS, SYMBOLS, SYMBOLS, axes=axes),
        "pixels": lambda: draw_diagonal(recording, 1, np.ones((T, 3)), SYMBOLS, axes=axes),
        "maps": lambda: draw_memory_maps(recording, axes=axes),
        "offsets": lambda: draw_memory_offsets(recording, axes=axes),
        "field": lambda: draw_receptive_field(field, axes=axes),
        "arrival": lambda: draw_arrival(np.array([[1, 2], [2, 0]]), axes=axes),
    }


@pytest.mark.parametrize("name", drawings())
def test_manners(name):
    """A figure of our own stays out of pyplot, shows in a notebook, and clips no text."""
    backend, settings = matplotlib.get_backend(), dict(matplotlib.rcParams)
    open_before = pyplot.get_fignums()
    figure = drawings()[name]()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == open_before
    assert matplotlib.get_backend() == backend
    assert dict(matplotlib.rcParams) == settings
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    assert xml.etree.ElementTree.fromstring(buffer.getvalue()).tag.endswith("svg")
    assert clipped(figure) == []

    mine = Figure(figsize=(6, 4), layout="constrained")
    axes = mine.subfigures(1, 2)[1].add_subplot()
    assert drawings(axes)[name]() is mine
    assert axes.images
    assert axes.get_title()


def clipped(figure):
    """Texts that reach beyond the figure."""
    figure.draw_without_rendering()  # lays it out
    renderer = figure._get_renderer()
    limits = figure.bbox
    return [
        text.get_text()
        for text in figure.findobj(matplotlib.text.Text)
        if text.get_visible()
        and text.get_text()
        and (box := text.get_window_extent(renderer)).width
        and not (
            limits.x0 - 1 <= box.x0
            and box.x1 <= limits.x1 + 1
            and limits.y0 - 1 <= box.y0
            and box.y1 <= limits.y1 + 1
        )
    ]


def test_clipping_is_noticed():
    figure = Figure(figsize=(1, 1))
    figure.text(0.5, 0.5, "far too long for one inch")
    assert clipped(figure) == ["far too long for one inch"]


def test_colours_grow_lighter():
    """One map for all pictures; its luminance rises throughout, so that it reads in grey."""
    from mlx_tlstm.visualize.canvas import COLOUR_MAP

    luminance = COLOUR_MAP(np.linspace(0, 1, 256))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    for name, draw in drawings().items():
        assert draw().axes[0].images[0].get_cmap() == COLOUR_MAP, name


def test_diagonal_picture():
    layer, x = build("two axes")
    recording = record(layer, x)
    means = diagonal_means(recording)[1].T
    figure = draw_diagonal(recording, 1, SYMBOLS, SYMBOLS, list("ab$xy"))
    picture = image_of(figure)
    expected = (means - means.min()) / (means.max() - means.min())
    np.testing.assert_allclose(picture, expected, rtol=1e-5, atol=1e-6)
    assert (picture.min(), picture.max()) == (0, 1)
    axes, bar = figure.axes
    assert axes.get_xlim() == (0.5, T + layer.delay + 0.5)
    assert axes.get_xlabel() == "step"
    assert axes.get_ylabel() == "location"
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["input  1,1", "1,2", "output  2,3"]
    assert bar.get_ylabel() == "scaled to [0, 1]"
    written = [t for t in axes.texts if t.get_text() not in ("input", "target", "output")]
    steps = [text.xy[0] for text in written]
    first = 1 + layer.delay
    assert [t.get_text() for t in written] == [*SYMBOLS, *SYMBOLS, *"ab$xy"]
    assert steps == [*range(1, T + 1), *range(first, first + T), *range(first, first + T)]
    bold = [t.get_text() for t in written if t.get_weight() == "bold"]
    assert bold == ["x", "y"]


def test_values_are_drawn_where_they_are_read():
    recording = recording_of("one axis")
    values = np.arange(T * 2, dtype=np.float32).reshape(T, 2)
    axes = draw_diagonal(recording, 0, values, [""] * (T - 1) + ["7"]).axes[0]
    strip = axes.images[1]
    np.testing.assert_array_equal(strip.get_array(), values.T)
    left, right, bottom, top = strip.get_extent()
    assert (left, right) == (0.5, T + 0.5)
    assert top > 3.5  # below the last of the three locations
    assert axes.get_ylim() == (bottom, 0.5)
    assert [(t.get_text(), t.xy[0]) for t in axes.texts][1:] == [("7", T + 2)]
    flat = draw_diagonal(recording, 0, values[:, 0]).axes[0].images[1]
    np.testing.assert_array_equal(flat.get_array(), values[:, :1].T)


@pytest.mark.parametrize("name", ["one axis", "two axes", "three axes", "stacked"])
def test_maps(name):
    recording = recording_of(name)
    means = channel_means(recording)[1]
    scaled = (means - means.min()) / (means.max() - means.min())
    figure = draw_memory_maps(recording, 1, [1, 4, T])
    assert texts(figure.axes[0]) == ["1", "4", str(T)]
    for number, step in enumerate((1, 4, T)):
        picture = image_of(figure, number)
        if name == "three axes":
            assert np.isnan(picture[:, 2]).all()
            picture = np.stack([picture[:, :2], picture[:, 3:]])
        expected = scaled[step - 1].reshape(picture.shape)
        np.testing.assert_allclose(picture, expected, rtol=1e-5, atol=1e-6)
    assert clipped(figure) == []
    everything = draw_memory_maps(recording)
    assert texts(everything.axes[0]) == [str(step + 1) for step in range(recording.steps)]


def test_long_sequences_get_a_choice_of_maps_and_ticks():
    recording = record(TLSTM(1, 2, 2), mx.zeros((1, 99, 1)))
    shown = [int(text) for text in texts(draw_memory_maps(recording).axes[0])]
    assert len(shown) == 24
    assert (shown[0], shown[-1]) == (1, 100)
    ticks = draw_diagonal(recording).axes[0].get_xticks().tolist()
    assert ticks == [1, *range(10, 101, 10)]


def test_offsets_picture():
    recording = recording_of("two axes")
    offsets = memory_offsets(recording).mean(axis=-1)
    expected = np.stack([offsets[:, :, p, q] for p, q in ((0, 0), (0, 1), (1, 2))], axis=1)
    np.testing.assert_allclose(image_of(draw_memory_offsets(recording, 1)), expected[1], atol=1e-6)
    figure = draw_memory_offsets(recording)
    np.testing.assert_allclose(image_of(figure), expected.mean(axis=0), atol=1e-6)
    assert figure.axes[0].images[0].get_clim() == (-1, 1)
    assert figure.axes[0].get_title().endswith("(mean over axes)")
    second = memory_offsets(recording)[0, ..., 1]
    expected = np.stack([second[:, p, q] for p, q in ((0, 0), (0, 1), (1, 2))])
    figure = draw_memory_offsets(recording, 0, tensor_axis=1)
    np.testing.assert_allclose(image_of(figure), expected, atol=1e-6)
    assert figure.axes[0].get_title().endswith("(axis 2 of 2)")


def test_receptive_field_picture():
    field = np.array([[1.0, 0.0], [100.0, 10.0]])
    picture = image_of(draw_receptive_field(field))
    np.testing.assert_allclose(picture, [[-2, np.nan], [0, -1]])
    assert np.isnan(image_of(draw_receptive_field(np.zeros((2, 2))))).all()


def test_arrival_picture():
    figure = draw_arrival(np.array([1, 2, 0]))
    assert texts(figure.axes[0]) == ["1", "2", "–"]
    colours = [text.get_color() for text in figure.axes[0].texts]
    assert colours == ["white", "black", "black"]  # on dark, on light, on grey
    assert draw_arrival(np.array([1, 0])).axes[0].texts[0].get_color() == "white"
    np.testing.assert_array_equal(image_of(figure), [[1, 2, np.nan]])


RECORDING = recording_of("one axis")


def diverged():
    return dataclasses.replace(RECORDING, cell=np.full_like(RECORDING.cell, np.nan))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: record(SequenceModel(TLSTM(R, M, 2), 3), mx.zeros((T, R))), "'layer' must be a"),
        (lambda: record(TLSTM(R, M, 2), mx.zeros((T, R + 1))), "'x' must be of shape"),
        (lambda: channel_means(recording_of("tRNN")), "with a memory cell but got 'TRNN'"),
        (lambda: diagonal_means(recording_of("tRNN")), "with a memory cell but got 'TRNN'"),
        (lambda: draw_diagonal(recording_of("tRNN")), "with a memory cell but got 'TRNN'"),
        (lambda: memory_offsets(recording_of("stacked")), "memory convolution but got 'StackedL"),
        (lambda: draw_memory_offsets(recording_of("no memory convolution")), "got 'TLSTM'"),
        (lambda: channel_means(np.zeros(3)), "'recording' must be a Recording"),
        (lambda: draw_diagonal(diverged()), "must be of finite states but got '21 others'"),
        (lambda: draw_memory_maps(diverged()), "must be of finite states"),
        (lambda: draw_diagonal(RECORDING, 2), "'example' must be an integer from 0 to 1 but got 2"),
        (lambda: draw_diagonal(RECORDING, inputs="ab"), "'inputs' must be 5 strings"),
        (lambda: draw_diagonal(RECORDING, targets=[1] * T), "'targets' must be 5 strings"),
        (lambda: draw_diagonal(RECORDING, inputs=np.zeros(4)), "'inputs' must be of shape"),
        (lambda: draw_diagonal(RECORDING, axes="here"), "'axes' must be a matplotlib Axes"),
        (lambda: draw_memory_offsets(RECORDING, 0, 1), "'tensor_axis' must be an integer from 0"),
        (lambda: draw_memory_maps(RECORDING, steps=[0]), "'steps' must be integers from 1 to 7"),
        (lambda: draw_memory_maps(RECORDING, steps=[]), "'steps' must be integers from 1 to 7"),
        (lambda: draw_receptive_field(np.zeros((2, 3))), "'field' must be a square"),
        (lambda: draw_arrival(np.zeros(3)), "'steps' must be an array of steps"),
        (lambda: receptive_field(TLSTM(R, M, 2), mx.zeros((B, T, R))), "'x' must be of shape"),
        (lambda: receptive_field(TLSTM(R, M, 2), mx.zeros((T, R)), probes=0), "'probes' must be"),
        (lambda: input_reach(None, mx.zeros((T, R))), "'layer' must be a TLSTM"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        call()

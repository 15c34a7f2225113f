"""The steps that flush the last outputs out run on the locations that these depend on.

Values and gradients of such layers beside the float64 reference are in ``test_against_reference``.
"""

import mlx.core as mx
import pytest
from comparison import ROUNDING, assert_close, values_and_gradients
from layer_helpers import HIDDEN, INPUT, moved, random_state

from mlx_tlstm import TLSTM, TRNN
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.ops import PlainBackend

SIZES = [((6,), 3), ((2, 5), (4, 2)), ((3, 2, 1), (2, 5, 3))]


def make(kind, tensor_size, kernel_size, **options):
    """A layer with nothing at zero or one, where mistakes would hide."""
    mx.random.seed(2)
    kind = TRNN if kind == "trnn" else TLSTM
    return moved(kind(INPUT, HIDDEN, tensor_size, kernel_size, **options))


def inputs(layer, length, batch_size=3):
    x = mx.random.normal((batch_size, length, INPUT))
    return x, random_state(layer.cell, batch_size)


def sizes_of_steps(monkeypatch, layer, run):
    """The tensor size of each step's convolution while ``run`` runs."""
    sizes, convolution = [], type(layer.cell.transition.backend).convolution

    def noted(self, hidden, *arguments, **options):
        sizes.append(hidden.shape[1:-1])
        return convolution(self, hidden, *arguments, **options)

    monkeypatch.setattr(type(layer.cell.transition.backend), "convolution", noted)
    run()
    return sizes


def test_the_corner_that_an_output_depends_on():
    geometry = Geometry((7, 2, 5), (4, 2, 3))
    assert [geometry.corner(steps).tensor_size for steps in (0, 1, 2, 9)] == [
        (1, 1, 1),
        (3, 2, 2),
        (5, 2, 3),
        (7, 2, 5),
    ]
    assert geometry.corner(1).kernel_size == geometry.kernel_size


@pytest.mark.parametrize("training", [True, False])
def test_flush_steps_become_smaller(monkeypatch, training):
    layer = make("tlstm", (2, 5), (4, 2), norm="channel").train(training)
    sizes = sizes_of_steps(monkeypatch, layer, lambda: layer(mx.zeros((1, 3, INPUT))))
    assert sizes == [*[(2, 5)] * 4, (2, 4), (2, 3), (2, 2)]


@pytest.mark.parametrize("run", ["stream", "trace"])
def test_other_steps_are_whole(monkeypatch, run):
    layer = make("tlstm", (4,), 3)
    sizes = sizes_of_steps(monkeypatch, layer, lambda: getattr(layer, run)(mx.zeros((1, 2, INPUT))))
    assert sizes == [(4,)] * (2 if run == "stream" else 5)


def test_layer_normalisation_needs_the_whole_tensor(monkeypatch):
    layer = make("tlstm", (4,), 3, norm="layer")
    sizes = sizes_of_steps(monkeypatch, layer, lambda: layer(mx.zeros((1, 2, INPUT))))
    assert sizes == [(4,)] * 5


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("kind", ["trnn", "tlstm", "tlstm recompute", "tlstm eval"])
@pytest.mark.parametrize(("tensor_size", "kernel_size"), SIZES)
def test_they_give_what_whole_steps_give(monkeypatch, tensor_size, kernel_size, kind, length):
    options = {} if kind == "trnn" else {"norm": "channel"}
    layer = make(kind, tensor_size, kernel_size, recompute="recompute" in kind, **options)
    layer.train("eval" not in kind)
    x, state = inputs(layer, length)
    found = values_and_gradients(layer, layer, x, state)
    monkeypatch.setattr(PlainBackend, "shrinks", False)
    assert_close(found, values_and_gradients(layer, layer, x, state), 1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_weights_of_half_precision(monkeypatch, dtype, training):
    layer = make("tlstm", (6,), 3, norm="channel").train(training)
    layer.set_dtype(dtype)
    x, state = inputs(layer, 2)
    found = values_and_gradients(layer, layer, x, state)
    monkeypatch.setattr(PlainBackend, "shrinks", False)
    assert_close(found, values_and_gradients(layer, layer, x, state), ROUNDING[dtype])


@pytest.mark.parametrize("way", ["training", "evaluation", "trace"])
def test_a_gradient_in_half_precision_is_summed_in_float32(way):
    """Of 100 steps it is within 0.8 roundings of float32's; summed in bfloat16 it is 2.9 off."""
    layer = make("tlstm", (3,), 3).train(way == "training")
    layer.set_dtype(mx.bfloat16)
    x, _ = inputs(layer, 100)

    def gradients():
        run = (lambda x: layer.trace(x).outputs) if way == "trace" else layer
        cell = values_and_gradients(layer, run, x)[1][0]["cell"]
        return {name: cell[name].astype(mx.float32) for name in ("weight", "bias")}

    found = gradients()
    layer.set_dtype(mx.float32)
    assert_close(found, gradients(), 1.5 * ROUNDING[mx.bfloat16])


def test_the_state_that_comes_back_is_whole():
    layer = make("tlstm", (4, 3), 3, norm="channel")
    x, state = inputs(layer, 5)
    outputs, after = layer(x, state)
    _, streamed = layer.stream(x, state)
    assert_close(after, streamed)
    first, middle = layer(x[:, :2], state)
    second, last = layer(x[:, 2:], middle)
    assert_close((mx.concatenate([first, second], axis=1), last), (outputs, after), 1e-6)

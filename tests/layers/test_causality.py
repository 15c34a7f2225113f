"""An output answers all inputs up to its own and none after: exactly, by receptive field.

LN's statistics run over the whole tensor, so there an input reaches the output at once.
"""

from __future__ import annotations

import mlx.core as mx
import pytest
from layer_helpers import INPUT, STEPS, build
from reference import Specification
from test_against_reference import GEOMETRIES


def layers(norm):
    for tensor_size, kernel_size in GEOMETRIES:
        spec = Specification(tensor_size, kernel_size, True, norm)
        yield build("tlstm", spec)[0]
        if norm is None:
            yield build("tlstm", Specification(tensor_size, kernel_size, False))[0]
            yield build("trnn", spec)[0]
    if norm is None:
        yield build("stacked", 3)[0]


def changed_outputs(layer, t):
    """Which outputs differ, in any bit, when the input at ``t`` does."""
    x = mx.random.normal((1, STEPS, INPUT), key=mx.random.key(3))
    other = mx.array(x)
    other[:, t] = mx.random.normal((1, INPUT), key=mx.random.key(4))
    differ = mx.any(layer(x)[0] != layer(other)[0], axis=(0, 2))
    return differ.tolist()


@pytest.mark.parametrize("norm", [None, "channel"])
def test_output_depends_on_every_input_so_far_and_no_later_one(norm):
    for layer in layers(norm):
        for t in range(STEPS):
            assert changed_outputs(layer, t) == [s >= t for s in range(STEPS)], layer


def test_layer_normalization_leaks_later_inputs_when_deep():
    for layer in layers("layer"):
        leaks = any(changed_outputs(layer, STEPS - 1)[:-1])
        assert leaks == (layer.depth > 1), layer


@pytest.mark.parametrize("method", ["__call__", "stream"])
@pytest.mark.parametrize("norm", [None, "channel"])
def test_chunks_give_what_the_whole_gives(norm, method):
    x = mx.random.normal((2, STEPS, INPUT), key=mx.random.key(5))
    for layer in layers(norm):
        run = getattr(layer, method)
        whole, final = run(x)
        for sizes in ([1] * STEPS, [2, 3], [1, 3, 1]):
            state, outputs, start = None, [], 0
            for size in sizes:
                y, state = run(x[:, start : start + size], state)
                outputs.append(y)
                start += size
            assert mx.allclose(mx.concatenate(outputs, axis=1), whole, rtol=1e-5, atol=1e-6)
            for got, expected in zip(state, final, strict=True):
                assert mx.allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_call_is_the_stream_with_a_flush():
    x = mx.random.normal((2, STEPS, INPUT), key=mx.random.key(6))
    for layer in (layer for norm in (None, "channel", "layer") for layer in layers(norm)):
        # A zero input projects to the bias, as the flush does.
        padded = mx.concatenate([x, mx.zeros((2, layer.delay, INPUT))], axis=1)
        streamed, _ = layer.stream(padded)
        y, state = layer(x)
        assert mx.allclose(y, streamed[:, layer.delay :], rtol=1e-5, atol=1e-6)
        _, unflushed = layer.stream(x)
        for got, expected in zip(state, unflushed, strict=True):
            assert mx.array_equal(got, expected)

"""What arguments may be, and how errors show what came in their place."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import fractions
import json
import pathlib

import mlx.core as mx
import numpy as np
import pytest

from mlx_tlstm import TLSTM, TRNN, SequenceModel, StackedLSTM, TLSTMCell, TRNNCell, make_layer
from mlx_tlstm.checks import as_integers, is_integer, is_number, plain, require, shown
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.models.generation import generate
from mlx_tlstm.visualize import (
    draw_by_depth,
    draw_diagonal,
    draw_memory_maps,
    draw_memory_offsets,
    receptive_field,
    record,
)


class Index:
    """An integer of another library."""

    def __index__(self):
        return 3


Three = enum.IntEnum("Three", {"THREE": 3})
INTEGERS = [
    *(kind(3) for kind in (np.int8, np.int32, np.int64, np.uint64)),
    np.array(3),
    mx.array(3),
    mx.array(3, mx.uint8),
    Index(),
    Three.THREE,
]
FLOATS = [
    *(kind(0.5) for kind in (np.float16, np.float32, np.float64, np.longdouble)),
    np.array(0.5),
    mx.array(0.5),
    mx.array(0.5, mx.bfloat16),
    decimal.Decimal("0.5"),
    fractions.Fraction(1, 2),
]
NEITHER = [
    True,
    np.True_,
    np.array(True),
    mx.array(True),
    "3",
    b"3",
    np.str_("3"),
    np.array([3]),
    mx.array([3]),
    [3],
    None,
    1j,
    np.complex64(1),
    decimal.Decimal("sNaN"),
]


def test_plain():
    for value in INTEGERS:
        assert type(plain(value)) is int
        assert plain(value) == 3
        assert is_integer(value)
        assert is_number(value)
    for value in FLOATS:
        assert type(plain(value)) is float
        assert plain(value) == 0.5
        assert not is_integer(value)
        assert is_number(value)
    for value in NEITHER:
        assert not is_integer(value)
        assert not is_number(value)
    assert plain(np.float32(1e-3)) == 0.0010000000474974513
    assert plain(np.True_) is True
    assert plain(mx.array(False)) is False
    for value in (np.float32(np.nan), mx.array(float("inf")), 10**400, decimal.Decimal("1e999")):
        assert not is_number(value)


def test_as_integers():
    for values in ([3, 4], np.array([3, 4]), mx.array([3, 4]), (np.int8(3), Index()), range(3, 5)):
        numbers = as_integers(values)
        assert numbers in ((3, 4), (3, 3))
        assert {type(number) for number in numbers} == {int}
    for values in (3, "34", [3, True], [[3]], np.zeros((2, 2), int), {3: 4}, {3}, [3.0], None):
        assert as_integers(values) is None


@pytest.mark.parametrize("three", INTEGERS, ids=repr)
def test_sizes_are_kept_as_python_integers(three):
    layers = [
        TLSTM(three, three, three, three),
        TLSTM(three, three, (three, three), [three, 2], forget_bias=three),
        TRNN(three, three, three, three),
        StackedLSTM(three, three, three, three),
        make_layer("3d-tlstm+cn", three, three, three, three, three),
        make_layer("2d-trnn", three, three, three, kernel_size=three),
    ]
    for layer in layers:
        cell = layer.cell
        state = cell.initial_state(three)
        assert state.hidden.shape == (3, *cell.state_shape)
        numbers = [cell.input_size, cell.hidden_size, cell.depth, cell.delay, *cell.state_shape]
        if hasattr(cell, "geometry"):
            numbers += [*cell.geometry.tensor_size, *cell.geometry.kernel_size]
        assert {type(number) for number in numbers} == {int}
        assert layer(mx.zeros((1, 2, 3)))[0].shape == (1, 2, 3)
    assert SequenceModel(layers[0], three).readout.weight.shape == (3, 3)
    for cell in (TLSTMCell(three, three, three), TRNNCell(three, three, three)):
        assert cell(mx.zeros((1, 3)), cell.initial_state(1)).hidden.shape == (1, 3, 3)


def test_a_saved_model_of_numpy_sizes_is_the_same(tmp_path):
    size, flag = np.int64(3), np.bool_(False)
    TLSTM(size, size, np.array([3, 3]), memory_convolution=flag, recompute=flag)
    layer = TLSTM(size, size, (size, size), (size, size), flag, "channel", recompute=flag)
    SequenceModel(layer, size).save(tmp_path / "numpy")
    plain_layer = TLSTM(3, 3, (3, 3), (3, 3), False, "channel", recompute=False)
    SequenceModel(plain_layer, 3).save(tmp_path / "python")
    texts = [(tmp_path / name / "config.json").read_text() for name in ("numpy", "python")]
    assert texts[0] == texts[1]


def test_sequences_of_sizes():
    for sizes in ([2, 3], np.array([2, 3]), mx.array([2, 3]), range(2, 4), (np.int64(2), Index())):
        assert Geometry.checked("Test", sizes, 3) == Geometry((2, 3), (3, 3))
    assert Geometry.checked("Test", np.int64(5), np.array([4])) == Geometry((5,), (4,))


@pytest.mark.parametrize("value", NEITHER, ids=repr)
def test_what_is_no_size(value):
    for make in (
        lambda: TLSTM(value, 3, 3),
        lambda: TRNN(3, value, 3),
        lambda: StackedLSTM(3, 3, value),
        lambda: make_layer("2d-tlstm", 3, 3, value),
        lambda: SequenceModel(TLSTM(3, 3, 3), value),
        lambda: TLSTM(3, 3, 3).cell.initial_state(value),
    ):
        with pytest.raises(ValueError, match=r"must be an integer of 1 or more but got"):
            make()


def config(**changes):
    settings = {
        "task": "memorization",
        "variant": "2d-tlstm",
        "depth": 2,
        "hidden_size": 3,
        "length": 3,
        "batch_size": 3,
        "eval_every": 3,
        "samples": 3,
    }
    return TrainingConfig(**settings | changes)


WHOLE = [field.name for field in dataclasses.fields(TrainingConfig) if "int" in field.type]
REAL = [field.name for field in dataclasses.fields(TrainingConfig) if "float" in field.type]


@pytest.mark.parametrize("name", WHOLE)
def test_integers_of_a_configuration(name):
    for three in INTEGERS:
        made = config(**{name: three})
        assert made == config(**{name: 3})
        assert type(getattr(made, name)) is int
    for value in [*NEITHER, *FLOATS]:
        if value is None and "None" in TrainingConfig.__annotations__[name]:
            continue
        with pytest.raises(ValueError, match=f"'{name}' must be an integer of . or more but got"):
            config(**{name: value})


@pytest.mark.parametrize("name", REAL)
def test_numbers_of_a_configuration(name):
    for half in FLOATS:
        made = config(**{name: half})
        assert made == config(**{name: 0.5})
        assert type(getattr(made, name)) is float
    for value in [*NEITHER, np.float32(np.inf), mx.array(float("nan")), 10**400]:
        with pytest.raises(ValueError, match=f"'{name}' must be a finite number .*but got"):
            config(**{name: value})


def test_a_configuration_is_kept_in_plain_types(tmp_path):
    made = config(
        learning_rate=np.float32(1e-3),
        recompute=np.True_,
        variant=np.str_("2d-tlstm"),
        data=pathlib.PurePosixPath("some/where"),
    )
    assert made.learning_rate == 0.0010000000474974513
    assert (made.recompute, made.data) == (True, "some/where")
    assert {type(value) for value in dataclasses.asdict(made).values()} == {
        int, float, str, bool, type(None)
    }  # fmt: skip
    made.save(tmp_path / "config.json")
    assert TrainingConfig.load(tmp_path / "config.json") == made
    for value in (1, 0, "True", None, np.int64(1)):
        with pytest.raises(ValueError, match="'recompute' must be True or False"):
            config(recompute=value)
    for value in (3, b"bytes", ["path"]):
        with pytest.raises(ValueError, match="'data' must be a path but got"):
            config(data=value)


def test_arguments_of_generate():
    mx.random.seed(0)
    model = SequenceModel(make_layer("2d-tlstm", 5, 8, 2), 5)
    expected = list(generate(model, [1, 2], 3, 0.5, 0.5, 3))
    for three, half in zip(INTEGERS, FLOATS, strict=True):
        for prompt in ([1, 2], np.array([1, 2]), mx.array([1, 2]), (np.int8(1), 2)):
            assert list(generate(model, prompt, three, half, half, three)) == expected
    assert next(generate(model, [1], 1, seed=np.uint64(2**64 - 1))) in range(5)
    for name in ("length", "temperature", "top_p", "seed"):
        for value in NEITHER:
            with pytest.raises(ValueError, match=f"'{name}' must be"):
                generate(**{"model": model, "prompt": [1], "length": 1} | {name: value})
    for prompt in (None, 3, "abc", [True], [1.0], np.array([[1]]), np.array([1.0]), iter("ab")):
        with pytest.raises(ValueError, match="'prompt' must be symbols from 0 to 4"):
            generate(model, prompt, 1)


def test_arguments_of_drawings():
    recording = record(TLSTM(3, 4, (2, 2)), mx.random.normal((2, 4, 3)))
    for one in (np.int64(1), mx.array(1)):
        draw_diagonal(recording, one)
        draw_memory_offsets(recording, one, one)
        draw_memory_maps(recording, one, np.array([1, 2]))
    symbols = np.array(list("abcd"))
    for inputs in (symbols, mx.zeros((4, 3)), mx.zeros((4,), mx.bfloat16), np.zeros(4, int)):
        draw_diagonal(recording, 0, inputs, symbols, symbols)
    with pytest.raises(ValueError, match=r"'inputs' must be of shape \[4\] or .* of numbers"):
        draw_diagonal(recording, 0, np.array([b"a"] * 4))
    draw_by_depth({"slstm": {np.int64(2): np.array([0.5, 1], np.float32)}}, "value")
    draw_by_depth({"slstm": {2: [mx.array(0.5), 1]}}, "value")
    layer = TRNN(1, 4, 2)
    x = mx.random.normal((3, 1))
    field = receptive_field(layer, x, np.int64(2), np.int64(3))
    np.testing.assert_array_equal(field, receptive_field(layer, x, 2, 3))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("short", "'short'"),
        (b"ab", "b'ab'"),
        ([1, [2, "x"]], "[1, [2, 'x']]"),
        ((2, 5), "(2, 5)"),
        ({"a": None}, "{'a': None}"),
        (-1, "-1"),
        (2**64, "18446744073709551616"),
        (float("nan"), "nan"),
        (np.zeros((2, 5)), "numpy ndarray of shape (2, 5) and type float64"),
        (mx.zeros((5,)), "mlx array of shape (5,) and type mlx.core.float32"),
        ([mx.zeros((5,))], "[mlx array of shape (5,) and type mlx.core.float32]"),
        (np.int64(3), "np.int64(3)"),
        (mx.array(3), "array(3, dtype=int32)"),
        (mx.float32, "mlx.core.float32"),
        (mx.array, "<class 'mlx.core.array'>"),
        (np.ndarray, "<class 'numpy.ndarray'>"),
        (None, "None"),
    ],
)
def test_shown(value, text):
    assert shown(value) == text


def test_an_integer_that_python_does_not_write_out():
    assert shown(10**5000) == "an integer of 16610 bits"


def nested(depth):
    values = []
    for _ in range(depth):
        values = [values]
    return values


class Loud:
    """Its repr is long, and fails for another."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        if self.text is None:
            raise RuntimeError("no repr")
        return self.text


@pytest.mark.parametrize(
    "value",
    [
        [[[0.123456789] * 64] * 50] * 32,
        "é\n" * 1_000_000,
        b"\xff" * 1_000_000,
        bytearray(1_000_000),
        {str(number): [number] * 100 for number in range(100_000)},
        set(range(100_000)),
        nested(100_000),
        Loud("x" * 1_000_000),
        Loud(None),
        (np.zeros((1000, 1000)), "x" * 1_000_000),
        TLSTM(3, 4, (2, 3), norm="channel"),
        "/path" * 1000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_short(value):
    with pytest.raises(ValueError, match=r"\[Owner\] 'x' must be small but got .") as error:
        require(False, "Owner", "x", "small", value)
    assert len(str(error.value)) < 700


def test_paths_are_shown_whole():
    path = "/a/folder/of/some/length" * 15
    assert shown(path) == repr(path)


def test_layers_say_what_type_they_take():
    layer = TLSTM(5, 4, 2)
    for x in (np.zeros((1, 2, 5), np.float32), [[[0.0] * 5] * 2] * 100_000):
        for run in (layer, layer.stream, layer.trace):
            with pytest.raises(ValueError, match=r"'x' must be an mx\.array but got") as error:
                run(x)
            assert len(str(error.value)) < 700
    with pytest.raises(ValueError, match=r"'state.hidden' must be an mx.array but got numpy"):
        layer(mx.zeros((1, 2, 5)), (np.zeros((1, 2, 4)), np.zeros((1, 2, 4))))


def test_choices_are_compared_with_their_own_kind():
    for value in (np.array(["channel", "layer"]), mx.array([1.0, 2.0]), ["channel"], 1):
        with pytest.raises(ValueError, match="'norm' must be one of None, 'channel', 'layer' but"):
            TLSTM(3, 4, 2, norm=value)
    assert json.dumps(TLSTM(3, 4, 2, norm=np.str_("layer")).cell.memory_update.norm)

"""Bugs planted in the convolution kernels, one at a time: each must be caught.

A bug is caught where the sanitizer stops a run, or a result is wrong beyond the tolerance of
``test_kernels_convolution``, at one of three sizes. They have several tiles, ragged on every side;
between them, simdgroups share rows, columns and depth, a thread loads nothing, once or several
times a slice, a simdgroup's part has one strip or more, each axis has an even kernel, and rows of
channels are a multiple of four elements long or are not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import convolution_cases
import mlx.core as mx
import pytest
from convolution_cases import Case
from convolution_mutations import (
    BARRIERS,
    FOLD,
    FORWARD,
    HEADER,
    INPUT_GRADIENT,
    MUTATIONS,
    PRODUCT_MUTATIONS,
    STACK_MUTATIONS,
    UNFOLD,
    WEIGHT_GRADIENT,
    Mutation,
)
from kernel_devices import on_cpu
from metal_on_cpu import MslError

from mlx_tlstm.kernels import library
from mlx_tlstm.kernels.stacking import stack
from mlx_tlstm.kernels.tiles import Tile

CASES = [
    Case((2, 3), (3, 2), 10, 5, tile=Tile(16, 32, 16, (2, 2, 2)), steps=9),
    Case((4,), (4,), 23, 5, tile=Tile(32, 16, 16, (1, 1, 2)), cell="trnn", steps=9),
    Case((3, 2, 3), (2, 2, 3), 8, 3, tile=Tile(16, 24, 32, (2, 1, 1)), cell="trnn", steps=1),
]


KERNELS = {
    FORWARD: [convolution_cases.forward],
    INPUT_GRADIENT: [convolution_cases.input_gradient],
    UNFOLD: [convolution_cases.forward, convolution_cases.weight_gradient],
    FOLD: [convolution_cases.input_gradient],
    WEIGHT_GRADIENT: [convolution_cases.weight_gradient],
    HEADER: [
        convolution_cases.forward,
        convolution_cases.input_gradient,
        convolution_cases.weight_gradient,
    ],
}


@functools.cache
def prepared(case: Case) -> tuple[convolution_cases.Arrays, convolution_cases.Arrays]:
    given = convolution_cases.arguments(case)
    return given, convolution_cases.expected(case, given)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """A function that puts a mutation into the sources; the stand-in runs them, sanitizing."""
    source = library.source

    def plant(mutation: Mutation) -> None:
        def mutated(file: str) -> str:
            text = source(file)
            in_header = mutation.file == HEADER and file.endswith(".h") and mutation.text in text
            if file != mutation.file and not in_header:
                return text
            assert text.count(mutation.text) == 1
            return text.replace(mutation.text, mutation.planted)

        monkeypatch.setattr(library, "source", mutated)
        library.forget_built_kernels()

    with on_cpu(check=False):
        yield plant


def found(mutation: Mutation, product: bool = False) -> str:
    """What the first run to notice the mutation says."""
    for case in CASES:
        case = dataclasses.replace(case, tile=None if product else case.tile, product=product)
        given, expected = prepared(case)
        for run in KERNELS[mutation.file]:
            try:
                computed = run(case, given)
            except MslError as error:
                return str(error)
            pairs = {name: (array, expected[name]) for name, array in computed.items()}
            if wrong := convolution_cases.wrong(pairs):
                return str(wrong)
    return ""


@pytest.mark.parametrize(
    "mutation",
    [
        *MUTATIONS,
        *(pytest.param(m, marks=pytest.mark.slow) for m in BARRIERS if m not in MUTATIONS),
    ],
    ids=str,
)
def test_mutation_is_caught(mutation: Mutation, plant) -> None:
    plant(mutation)
    message = found(mutation)
    assert message
    assert "error:" not in message  # a bug, not a source that does not compile


@pytest.mark.parametrize("mutation", PRODUCT_MUTATIONS, ids=str)
def test_mutation_around_products_is_caught(mutation: Mutation, plant) -> None:
    plant(mutation)
    message = found(mutation, product=True)
    assert message
    assert "error:" not in message


@pytest.mark.parametrize("mutation", STACK_MUTATIONS, ids=str)
def test_mutation_of_stack_is_caught(mutation: Mutation, plant) -> None:
    plant(mutation)
    arrays = [mx.arange(1100) + 10000 * i for i in range(19)]
    try:
        caught = not mx.array_equal(stack(arrays), mx.stack(arrays))
    except MslError as error:
        caught = "error:" not in str(error)
    assert caught


def test_nothing_is_caught_without_a_mutation(plant) -> None:
    plant(Mutation(HEADER, "struct TileProduct {", "struct TileProduct {"))
    assert found(Mutation(HEADER, "", "")) == ""
    assert found(Mutation(HEADER, "", ""), product=True) == ""

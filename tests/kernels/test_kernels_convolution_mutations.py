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

import comparison
import convolution_cases
import mlx.core as mx
import pytest
from convolution_cases import Case
from convolution_mutations import (
    BARRIERS,
    FOLD,
    FORWARD,
    INPUT_GRADIENT,
    MUTATIONS,
    PRODUCT_MUTATIONS,
    STACK_MUTATIONS,
    UNFOLD,
    WEIGHT_GRADIENT,
)
from kernel_mutations import HEADER, Mutation, noticed

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


def wrong_numbers(file: str, product: bool = False) -> dict[str, float]:
    """What the first run of the file's kernels with wrong results makes."""
    for case in CASES:
        case = dataclasses.replace(case, tile=None if product else case.tile, product=product)
        given, expected = prepared(case)
        for run in KERNELS[file]:
            found = run(case, given)
            right = {name: expected[name] for name in found}
            tolerance = convolution_cases.tolerance(case)
            if wrong := comparison.wrong(found, right, tolerance, rounded=True):
                return wrong
    return {}


@pytest.mark.parametrize(
    "mutation",
    [
        *MUTATIONS,
        *(pytest.param(m, marks=pytest.mark.slow) for m in BARRIERS if m not in MUTATIONS),
    ],
    ids=str,
)
def test_mutation_is_caught(mutation: Mutation) -> None:
    assert noticed(lambda: wrong_numbers(mutation.file), mutation)


@pytest.mark.parametrize("mutation", PRODUCT_MUTATIONS, ids=str)
def test_mutation_around_products_is_caught(mutation: Mutation) -> None:
    assert noticed(lambda: wrong_numbers(mutation.file, product=True), mutation)


@pytest.mark.parametrize("mutation", STACK_MUTATIONS, ids=str)
def test_mutation_of_stack_is_caught(mutation: Mutation) -> None:
    arrays = [mx.arange(1100) + 10000 * i for i in range(19)]

    def check() -> bool:
        return not mx.array_equal(stack(arrays), mx.stack(arrays))

    assert noticed(check, mutation)


def test_nothing_is_caught_without_a_mutation() -> None:
    assert noticed(lambda: wrong_numbers(HEADER)) == ""
    assert noticed(lambda: wrong_numbers(HEADER, product=True)) == ""

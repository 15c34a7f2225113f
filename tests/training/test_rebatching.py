"""Evaluation batches of another size."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_tlstm.tasks import Batch
from mlx_tlstm.training.rebatching import rebatched


def numbered(rows, steps, fresh, start):
    numbers = start + np.arange(rows * steps).reshape(rows, steps)
    return Batch(numbers, -numbers, fresh)


@pytest.mark.parametrize("size", range(1, 12))
def test_rebatching(size):
    """Rows keep their order, follow their segments to the end, and are joined where alike."""
    streams = [numbered(4, 3, True, 0), numbered(4, 3, False, 100), numbered(4, 2, False, 200)]
    alike = [numbered(2, 3, True, 300), numbered(5, 3, True, 400), numbered(1, 3, True, 500)]
    other = [numbered(2, 1, True, 600)]
    batches = list(rebatched([*streams, *alike, *other], size))
    assert all(0 < len(batch.targets) <= size for batch in batches)
    assert all((batch.inputs == -batch.targets).all() for batch in batches)
    # The rows of each segment, as they go on from a fresh batch.
    sequences = []
    for batch in batches:
        if batch.fresh:
            sequences += [list(row) for row in batch.inputs]
        else:
            for sequence, row in zip(sequences[-len(batch.inputs) :], batch.inputs, strict=True):
                sequence += list(row)
    expected = [
        [*a, *b, *c] for a, b, c in zip(*(batch.inputs for batch in streams), strict=True)
    ] + [list(row) for batch in (*alike, *other) for row in batch.inputs]
    assert sequences == expected
    # No more batches than it takes: 3 a group of streams, 1 of the others.
    assert len(batches) == 3 * -(-4 // size) + -(-8 // size) + -(-2 // size)

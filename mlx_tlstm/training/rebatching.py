"""The same evaluation sequences in batches of another size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from mlx_tlstm.tasks import Batch

#: Batches of the same rows, of which the first starts from the zero state and the others go on.
Segment = list[Batch]


def rebatched(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The sequences of ``batches`` in the same order, in batches of ``size`` sequences at most.

    Sequences that go on from batch to batch are followed to their end before the next ones start.
    """
    held: Segment = []
    for segment in _segments(batches):
        if held and _steps(held) == _steps(segment):
            held = [_joined(*pair) for pair in zip(held, segment, strict=True)]
        else:
            yield from held
            held = segment
        while held and len(held[0].targets) >= size:
            yield from _rows(held, slice(None, size))
            rest = len(held[0].targets) > size
            held = _rows(held, slice(size, None)) if rest else []
    yield from held


def _segments(batches: Iterable[Batch]) -> Iterator[Segment]:
    segment: Segment = []
    for batch in batches:
        if batch.fresh and segment:
            yield segment
            segment = []
        segment.append(batch)
    if segment:
        yield segment


def _steps(segment: Segment) -> list[int]:
    return [batch.targets.shape[1] for batch in segment]


def _joined(first: Batch, second: Batch) -> Batch:
    inputs, targets = (np.concatenate(pair) for pair in zip(first[:2], second[:2], strict=True))
    return Batch(inputs, targets, first.fresh)


def _rows(segment: Segment, rows: slice) -> Segment:
    return [Batch(inputs[rows], targets[rows], fresh) for inputs, targets, fresh in segment]

"""Parameters of a variant's model, and the width at which it has about as many as another."""

from __future__ import annotations

import bisect
from functools import cache

from mlx.utils import tree_flatten

from mlx_tlstm import SequenceModel, make_layer

_WIDEST = 1 << 12


@cache
def parameter_count(variant: str, symbols: tuple[int, int], hidden_size: int, depth: int) -> int:
    """Trained numbers of a model with its read-out; MLX never fills the arrays.

    Args:
        variant: Its name.
        symbols: R and S, the widths of an input and of the logits.
        hidden_size: M.
        depth: L.
    """
    inputs, classes = symbols
    model = SequenceModel(make_layer(variant, inputs, hidden_size, depth), classes)
    return sum(array.size for _, array in tree_flatten(model.trainable_parameters()))


def equal_width(variant: str, symbols: tuple[int, int], depth: int, parameters: int) -> int:
    """The largest M at which a model has no more than ``parameters``; 1 at least."""
    count = bisect.bisect_right(
        range(1, _WIDEST),
        parameters,
        key=lambda hidden_size: parameter_count(variant, symbols, hidden_size, depth),
    )
    return max(1, count)

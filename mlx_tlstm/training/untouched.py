"""Whether a callback left the model that is being trained alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm.checks import shown
from mlx_tlstm.recurrence.captured import handle


class Untouched:
    """The parameters of a model in training, which callbacks may not change, and its modes.

    Args:
        model: The model, before its first step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._frozen = self._not_trained()
        self._modes = [(module, module.training) for module in model.modules()]

    def check(self, weights: Any) -> None:
        """Check that the model has these trained parameters, and its others; put back its modes.

        Raises:
            ValueError: Some were changed, frozen or replaced, which the next step would overwrite.
        """
        for module, mode in self._modes:  # a module before its parts, whose modes it sets
            module.train(mode)
        ours = dict(tree_flatten(weights)) | self._frozen
        found = dict(tree_flatten(self._model.trainable_parameters())) | self._not_trained()
        alike = [n for n in ours if n in found and _same_form(ours[n], found[n])]
        changed = sorted((ours.keys() | found.keys()) - set(alike))
        if not changed:
            same = [mx.array_equal(ours[name], found[name], equal_nan=True) for name in alike]
            if mx.all(mx.stack(same)).item():
                return
            changed = [name for name, equal in zip(alike, same, strict=True) if not equal.item()]
        raise ValueError(
            "[Trainer] 'model' must be left to training while it trains but "
            f"{shown(changed)} changed, or were frozen or replaced: training keeps weights of its "
            "own (freeze in the cell's __init__; to start from other weights, write a training "
            "step of your own)"
        )

    def _not_trained(self) -> dict[str, mx.array]:
        """The model's other parameters, as they are now."""
        trained = dict(tree_flatten(self._model.trainable_parameters()))
        others = tree_flatten(self._model.parameters())
        # Handles, since x[0] = 1 changes x itself.
        return {f"{n} (frozen)": handle(array) for n, array in others if n not in trained}


def _same_form(one: mx.array, other: mx.array) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype)

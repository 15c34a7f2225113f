"""Whether a cell of the user's own can be trained, asked before anything is computed or written."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm.checks import require
from mlx_tlstm.models.sequence import SequenceModel, loadable_config
from mlx_tlstm.recurrence.captured import Search
from mlx_tlstm.recurrence.compilation import traceable
from mlx_tlstm.recurrence.random_state import current_key, random_key
from mlx_tlstm.recurrence.snapshot import kept_arrays, snapshot


def require_trainable(model: SequenceModel, rows: int, input_size: int) -> None:
    """Refuse a model around a cell that training, or loading what it saves, would fail with.

    Two steps of a copy are traced with their gradient. Nothing is evaluated, and the state of
    ``mx.random`` stays.

    Args:
        model: The model; it need not be evaluated.
        rows: B, the sequences that go through it at once.
        input_size: R.

    Raises:
        ValueError: A parameter is not of floating-point numbers; the cell makes parameters in a
            step, or has others each time that it is built; a step replaces arrays that it reads,
            or reads their values; or a step or its gradient fails.
    """
    for name, array in tree_flatten(model.parameters()):
        expected = "of floating-point numbers, or under a name with '_' first, as no parameter,"
        floating = mx.issubdtype(array.dtype, mx.floating)
        require(floating, type(model).__name__, name, expected, array.dtype)
    loadable_config(model)
    copy = snapshot(model)
    with random_key(current_key()), traceable(type(model).__name__):
        mx.compile(lambda x: _gradient(copy, x))(mx.zeros((rows, 1, input_size), model.layer.dtype))


def _gradient(model: SequenceModel, x: mx.array) -> object:
    """The gradient of two steps, whose values mean nothing."""
    owner, names = type(model.layer).__name__, _parameter_names(model)

    def total(x: mx.array) -> mx.array:
        _, state = model(x)
        made = sorted(_parameter_names(model) - names)
        expected = "a module that makes all its parameters when it is made, and none in a step,"
        require(not made, owner, "cell", expected, made)
        reached = Search(model.layer.cell)
        with kept_arrays(model):
            logits, _ = model(x, state)
        same = [id(array) for array in reached.arrays] == [id(array) for array in reached.again()]
        expected = "one whose steps replace no array elsewhere either, since they are traced only,"
        require(same, owner, "cell", expected, "an object with arrays that change")
        return logits.sum()

    return nn.value_and_grad(model, total)(x)


def _parameter_names(model: nn.Module) -> set[str]:
    return {name for name, _ in tree_flatten(model.parameters())}

"""States lent to a step, which may write into its own without a trace in anybody else's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_tlstm.recurrence.captured import handle
from mlx_tlstm.recurrence.trees import arrays_of, with_arrays

_IN_PLACE = (
    *("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__"),
    *("__imod__", "__ipow__", "__imatmul__", "__iand__", "__ior__", "__ixor__"),
    *("__ilshift__", "__irshift__"),
)


class LentArray(mx.array):
    """Another object for an array, which remembers whether it was written to."""

    written = False


def _noting(name: str) -> Callable[..., Any]:
    method = getattr(mx.array, name)

    def write(self: LentArray, *arguments: Any) -> Any:
        self.written = True
        return method(self, *arguments)

    return write


for _name in _IN_PLACE:
    setattr(LentArray, _name, _noting(_name))


class Lent:
    """A state for one step, of arrays and containers that nobody else has.

    Args:
        state: The state.
        like: A tree of its form.

    Attributes:
        state: What to give to the step.
    """

    def __init__(self, state: Any, like: Any) -> None:
        self._arrays = arrays_of(state, like)
        self._lent = [LentArray(array) for array in self._arrays]
        self.state = with_arrays(like, self._lent)

    def returned(self, state: Any) -> Any:
        """The state that the step returned, where what it only handed on is the array itself."""
        pairs = zip(self._lent, self._arrays, strict=True)
        handed_on = {id(lent): array for lent, array in pairs if not lent.written}
        arrays = [handed_on.get(id(array), array) for array in arrays_of(state, state)]
        own = [handle(array) if isinstance(array, LentArray) else array for array in arrays]
        return with_arrays(state, own)

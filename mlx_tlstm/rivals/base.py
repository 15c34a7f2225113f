"""The base class of the rivals' cells: their sizes, checked and shown."""

from __future__ import annotations

from typing import ClassVar

from mlx import nn

from mlx_tlstm.checks import require_integer
from mlx_tlstm.layers.base import MAX_LAYERS, require_countable, require_depth


class RivalCell(nn.Module):
    """A cell whose sizes are checked before it makes any array.

    Args:
        sizes: ``input_size`` and ``hidden_size`` and, where there are layers, ``depth``.

    Attributes:
        max_depth: The largest depth.
        has_own_start: Whether its paper, or its authors' code, says how its weights start. Training
            draws ``input_weight`` of the others as it does that of this package's own layers.
    """

    max_depth: ClassVar[int] = MAX_LAYERS
    has_own_start: ClassVar[bool] = True

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, size in sizes.items():
            if name == "depth":
                size = require_depth(owner, size, self.max_depth)
            else:
                size = require_integer(owner, name, size)
            setattr(self, name, size)

    def _require_countable(self, **shapes: tuple[int, ...]) -> None:
        for name, shape in shapes.items():
            require_countable(type(self).__name__, name, shape)

    def _extra_repr(self) -> str:
        sizes = (name for name in ("input_size", "hidden_size", "depth") if hasattr(self, name))
        return ", ".join(f"{name}={getattr(self, name)}" for name in sizes)

"""A cell of a user's own with all that a module may hold beside trained weights."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from mlx_tlstm import CellVariant

NAME = "mixed"


class MixedCell(nn.Module):
    """Modules without parameters, dropout, a frozen part, empty containers, a digit as a name."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.linear = nn.Linear(input_size + hidden_size, hidden_size)
        self.activation, self.dropout = nn.Tanh(), nn.Dropout(0.3)
        self.frozen = nn.Linear(hidden_size, hidden_size)
        self.frozen.freeze()
        self.empty_list, self.empty_dict = [], {}
        self.parts = [nn.Tanh(), nn.Linear(hidden_size, hidden_size), nn.Tanh()]
        self.by_digit = {"1": nn.Linear(hidden_size, hidden_size)}
        self._order = mx.arange(hidden_size)

    def initial_state(self, batch_size: int) -> mx.array:
        return mx.zeros((batch_size, self.hidden_size))

    def __call__(self, x: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
        state = self.activation(self.linear(mx.concatenate([x, state], axis=-1)))
        output = self.frozen(self.dropout(state))[:, self._order]
        for part in (*self.parts, self.by_digit["1"]):
            output = part(output)
        return output, state


#: To be put into ``VARIANTS`` under :data:`NAME`.
MIXED = CellVariant(MixedCell)

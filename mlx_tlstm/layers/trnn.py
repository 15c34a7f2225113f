"""The Tensorized RNN (Eq. 5-8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from mlx_tlstm.checks import require_integer
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.layers.base import RecurrentLayer
from mlx_tlstm.layers.tensor import TensorCell
from mlx_tlstm.recurrence.transition import TRNNTransition


class TRNNState(NamedTuple):
    """State of a tRNN: the hidden state H, ``[B, *P, M]``."""

    hidden: mx.array


class TRNNCell(TensorCell):
    """One time step of a tRNN; arguments, parameters and errors as :class:`TRNN` lists them."""

    state_type = TRNNState
    transition_type = TRNNTransition

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        tensor_size: int | Sequence[int],
        kernel_size: int | Sequence[int] = 3,
        recompute: bool = False,
        backend: str | None = None,
    ) -> None:
        geometry = Geometry.checked(type(self).__name__, tensor_size, kernel_size)
        M = require_integer(type(self).__name__, "hidden_size", hidden_size)
        super().__init__(input_size, M, geometry, None, M, recompute, backend)


class TRNN(RecurrentLayer):
    r"""A Tensorized RNN over sequences: ``x [B, T, R]`` to outputs ``y [B, T, M]``.

    A step is H_t = tanh(H^{cat}_{t-1} ⊛ {W^h, b^h}) (Eq. 5-8), where H ``[B, *P, M]`` is the hidden
    tensor and H^{cat} has the projected input before its first location.

    ``layer.cell`` is one time step, a :class:`TRNNCell`.

    Args:
        input_size: R, width of an input.
        hidden_size: M, channels of each location.
        tensor_size: P of each tensor axis; an integer is one axis.
        kernel_size: K, 2 or more; an integer serves all axes.
        recompute: See :class:`TLSTM`; a tRNN keeps nothing besides its states in any case.
        backend: See :class:`TLSTM`.

    Parameters: ``weight [M, *K, M]``, ``bias [M]``, ``input_projection`` (``nn.Linear``).

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    cell_type = TRNNCell

"""The rivals, each with its float64 reference, for the checks that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import dilated_gru_reference
import irnn_reference
import lstm_reference
import mlstm_reference
import rhn_reference
from mlx import nn

from mlx_tlstm import rivals

# Pairwise different, so that no transposed axis goes unseen.
BATCH, STEPS, INPUT, HIDDEN, DEPTH = 3, 6, 5, 4, 2
SIZES = {"input_size": INPUT, "hidden_size": HIDDEN}


class Case(NamedTuple):
    """A rival.

    Attributes:
        cell: Its class.
        arguments: Of the class.
        reference: ``reference(parameters, x, *state)`` gives the outputs, then the arrays of the
            last state, all float64.
        parameters: The count of its parameters as a formula, of R, M and L.
    """

    cell: type[nn.Module]
    arguments: Mapping[str, Any]
    reference: Callable[..., tuple[Any, ...]]
    parameters: Callable[[int, int, int], int]


CASES = {
    "lstm": Case(
        rivals.LSTMCell,
        SIZES,
        lstm_reference.lstm,
        lambda R, M, L: 4 * M * (R + M + 1),
    ),
    "stacked-lstm": Case(
        rivals.UntiedLSTMCell,
        {**SIZES, "depth": DEPTH},
        lstm_reference.stacked_lstm,
        lambda R, M, L: M * (R + 1) + L * 4 * M * (2 * M + 1),
    ),
    "grid-lstm": Case(
        rivals.GridLSTMCell,
        {**SIZES, "depth": DEPTH},
        lstm_reference.grid_lstm,
        lambda R, M, L: 2 * M * R + 8 * M * (2 * M + 1),
    ),
    "irnn": Case(
        rivals.IRNNCell,
        SIZES,
        irnn_reference.irnn,
        lambda R, M, L: M * (R + M + 1),
    ),
    # Two layers would not show how far the third reaches back.
    "dilated-gru": Case(
        rivals.DilatedGRUCell,
        {**SIZES, "depth": 3},
        dilated_gru_reference.dilated_gru,
        lambda R, M, L: 3 * M * (R + M + 1) + (L - 1) * 3 * M * (2 * M + 1),
    ),
    "mlstm": Case(
        rivals.MultiplicativeLSTMCell,
        SIZES,
        mlstm_reference.mlstm,
        lambda R, M, L: 5 * M * (R + M) + 4 * M,
    ),
    "rhn": Case(
        rivals.RecurrentHighwayCell,
        {**SIZES, "depth": DEPTH},
        rhn_reference.rhn,
        lambda R, M, L: 2 * M * R + L * 2 * M * (M + 1),
    ),
}

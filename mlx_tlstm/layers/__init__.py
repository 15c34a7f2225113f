"""Cells (one time step) and layers (a sequence)."""

from mlx_tlstm.layers.recurrent import Recurrent
from mlx_tlstm.layers.stacked import StackedLSTM, StackedLSTMCell, StackedLSTMState
from mlx_tlstm.layers.tlstm import TLSTM, TLSTMCell, TLSTMState
from mlx_tlstm.layers.trnn import TRNN, TRNNCell, TRNNState

__all__ = [
    "TLSTM",
    "TRNN",
    "Recurrent",
    "StackedLSTM",
    "StackedLSTMCell",
    "StackedLSTMState",
    "TLSTMCell",
    "TLSTMState",
    "TRNNCell",
    "TRNNState",
]

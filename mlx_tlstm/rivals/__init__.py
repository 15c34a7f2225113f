"""Cells of the systems that the paper compares itself with, for :class:`mlx_tlstm.Recurrent`.

Each is written from the equations of its own paper, and has no options but those that its row
needs.
"""

from mlx_tlstm.rivals.dilated_gru import DilatedGRUCell
from mlx_tlstm.rivals.grid_lstm import GridLSTMCell
from mlx_tlstm.rivals.irnn import IRNNCell
from mlx_tlstm.rivals.lstm import LSTMCell
from mlx_tlstm.rivals.mlstm import MultiplicativeLSTMCell
from mlx_tlstm.rivals.rhn import RecurrentHighwayCell
from mlx_tlstm.rivals.stacked_lstm import UntiedLSTMCell

__all__ = [
    "DilatedGRUCell",
    "GridLSTMCell",
    "IRNNCell",
    "LSTMCell",
    "MultiplicativeLSTMCell",
    "RecurrentHighwayCell",
    "UntiedLSTMCell",
]

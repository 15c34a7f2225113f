"""Cells of the systems that the paper compares itself with, for :class:`mlx_tlstm.Recurrent`.

Each is written from the equations of its own paper, and has no options but those that its row
needs. :data:`RIVALS` names them; importing this module puts them into :data:`mlx_tlstm.VARIANTS`.
"""

from mlx_tlstm.layers.variants import VARIANTS, CellVariant
from mlx_tlstm.rivals.dilated_gru import DilatedGRUCell
from mlx_tlstm.rivals.grid_lstm import GridLSTMCell
from mlx_tlstm.rivals.irnn import IRNNCell
from mlx_tlstm.rivals.lstm import LSTMCell
from mlx_tlstm.rivals.mlstm import MultiplicativeLSTMCell
from mlx_tlstm.rivals.rhn import RecurrentHighwayCell
from mlx_tlstm.rivals.stacked_lstm import UntiedLSTMCell

#: By name, with the settings of training that their papers, or their authors' code, name.
RIVALS = {
    "stacked-lstm": CellVariant(UntiedLSTMCell),
    "grid-lstm": CellVariant(GridLSTMCell),
    "lstm": CellVariant(LSTMCell, {"forget_bias": 1.0, "clip_norm": 0.0, "clip_value": 1.0}),
    "irnn": CellVariant(IRNNCell, {"clip_norm": 1.0}),
    "dilated-gru": CellVariant(DilatedGRUCell, {"clip_norm": 0.0}),
    "mlstm": CellVariant(MultiplicativeLSTMCell, {"forget_bias": 3.0, "clip_norm": 0.0}),
    "rhn": CellVariant(RecurrentHighwayCell, {"clip_norm": 10.0}),
}
VARIANTS.update(RIVALS)
#: The variants that the commands know; others, and others of these names, are a user's own.
BUILT_IN = dict(VARIANTS)

__all__ = [
    "BUILT_IN",
    "RIVALS",
    "DilatedGRUCell",
    "GridLSTMCell",
    "IRNNCell",
    "LSTMCell",
    "MultiplicativeLSTMCell",
    "RecurrentHighwayCell",
    "UntiedLSTMCell",
]

"""Shows what layers compute at every step, and how training went.

Each ``draw_`` function draws into the Axes that it is given, or makes a figure, and returns the
figure; none changes pyplot's state.
"""

from mlx_tlstm.visualize.canvas import save_figure
from mlx_tlstm.visualize.curves import draw_learning_curves
from mlx_tlstm.visualize.depth import draw_by_depth, draw_runtime
from mlx_tlstm.visualize.maps import draw_memory_maps
from mlx_tlstm.visualize.measures import (
    channel_means,
    diagonal_means,
    memory_offsets,
)
from mlx_tlstm.visualize.memory_cells import draw_diagonal, draw_memory_offsets
from mlx_tlstm.visualize.reach import draw_arrival, draw_receptive_field
from mlx_tlstm.visualize.recording import Recording, diagonal, record
from mlx_tlstm.visualize.sensitivity import arrival_steps, input_reach, receptive_field
from mlx_tlstm.visualize.styles import variant_style

__all__ = [
    "Recording",
    "arrival_steps",
    "channel_means",
    "diagonal",
    "diagonal_means",
    "draw_arrival",
    "draw_by_depth",
    "draw_diagonal",
    "draw_learning_curves",
    "draw_memory_maps",
    "draw_memory_offsets",
    "draw_receptive_field",
    "draw_runtime",
    "input_reach",
    "memory_offsets",
    "receptive_field",
    "record",
    "save_figure",
    "variant_style",
]

"""The two operations of a step as plain MLX operations, each with its gradient.

Custom kernels take the place of these functions, with the same arguments and results.
"""

from mlx_tlstm.ops.convolution import (
    cross_layer_convolution,
    cross_layer_convolution_input_gradient,
    cross_layer_convolution_weight_gradient,
    transposed,
)
from mlx_tlstm.ops.memory import (
    MemoryUpdate,
    Residuals,
    memory_update,
    memory_update_backward,
)
from mlx_tlstm.ops.ordering import after

__all__ = [
    "MemoryUpdate",
    "Residuals",
    "after",
    "cross_layer_convolution",
    "cross_layer_convolution_input_gradient",
    "cross_layer_convolution_weight_gradient",
    "memory_update",
    "memory_update_backward",
    "transposed",
]

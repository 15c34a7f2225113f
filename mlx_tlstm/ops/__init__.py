"""The parts of a step as plain MLX operations; :mod:`~mlx_tlstm.ops.cpu` is what only CPUs need."""

from mlx_tlstm.ops.backend import PlainBackend
from mlx_tlstm.ops.memory_update import Residuals

__all__ = ["PlainBackend", "Residuals"]

"""The parts of a step as Metal kernels, which CUDA runs too, and who runs them when.

``metal/`` holds the sources, :mod:`~mlx_tlstm.kernels.library` builds them, the modules named after
:mod:`mlx_tlstm.ops`' launch them, and :class:`KernelBackend` is all of that together.
"""

from mlx_tlstm.kernels.backend import KernelBackend
from mlx_tlstm.kernels.dispatch import (
    BACKENDS,
    ENVIRONMENT_VARIABLE,
    BackendError,
    named_backend,
    select_backend,
)

__all__ = [
    "BACKENDS",
    "ENVIRONMENT_VARIABLE",
    "BackendError",
    "KernelBackend",
    "named_backend",
    "select_backend",
]

"""The two operations of a step as Metal kernels, which CUDA runs too, and who runs them when.

``metal/`` holds the sources, :mod:`~mlx_tlstm.kernels.library` builds them, the modules named after
:mod:`mlx_tlstm.ops`' launch them, and :mod:`~mlx_tlstm.kernels.transitions` makes steps of them.
"""

from mlx_tlstm.kernels.dispatch import (
    BACKENDS,
    ENVIRONMENT_VARIABLE,
    named_backend,
    select_backend,
)
from mlx_tlstm.kernels.transitions import KernelTransition, TLSTMTransition, TRNNTransition

__all__ = [
    "BACKENDS",
    "ENVIRONMENT_VARIABLE",
    "KernelTransition",
    "TLSTMTransition",
    "TRNNTransition",
    "named_backend",
    "select_backend",
]

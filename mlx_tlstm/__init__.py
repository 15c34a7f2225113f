"""Tensorized LSTMs (He et al., NIPS 2017) for MLX."""

from mlx_tlstm import blas

blas.preload()

from mlx_tlstm.layers import (  # noqa: E402 (OpenBLAS has to be loaded before MLX)
    TLSTM,
    TRNN,
    StackedLSTM,
    StackedLSTMCell,
    StackedLSTMState,
    TLSTMCell,
    TLSTMState,
    TRNNCell,
    TRNNState,
)
from mlx_tlstm.model import SequenceModel  # noqa: E402
from mlx_tlstm.variants import VARIANTS, make_layer  # noqa: E402

__all__ = [
    "TLSTM",
    "TRNN",
    "VARIANTS",
    "SequenceModel",
    "StackedLSTM",
    "StackedLSTMCell",
    "StackedLSTMState",
    "TLSTMCell",
    "TLSTMState",
    "TRNNCell",
    "TRNNState",
    "make_layer",
]

"""Tensorized LSTMs (He et al., NIPS 2017) for MLX."""

from mlx_tlstm import blas

blas.preload()

from mlx_tlstm.hub import HubError, load, push  # noqa: E402 (OpenBLAS is loaded before MLX)
from mlx_tlstm.layers import (  # noqa: E402
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
from mlx_tlstm.metadata import ModelMetadata  # noqa: E402
from mlx_tlstm.model import SequenceModel  # noqa: E402
from mlx_tlstm.streaming import StreamingSession  # noqa: E402
from mlx_tlstm.variants import VARIANTS, make_layer  # noqa: E402

__all__ = [
    "TLSTM",
    "TRNN",
    "VARIANTS",
    "HubError",
    "ModelMetadata",
    "SequenceModel",
    "StackedLSTM",
    "StackedLSTMCell",
    "StackedLSTMState",
    "StreamingSession",
    "TLSTMCell",
    "TLSTMState",
    "TRNNCell",
    "TRNNState",
    "load",
    "make_layer",
    "push",
]

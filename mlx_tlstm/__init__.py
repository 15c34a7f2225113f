"""Tensorized LSTMs (He et al., NIPS 2017) for MLX.

``tasks``, ``training`` and ``visualize`` are loaded at their first use, as in
``mlx_tlstm.training.fit``, so that whoever only uses a layer waits for none of what they need.
"""

import importlib
import importlib.metadata
from types import ModuleType

from mlx_tlstm import blas

blas.preload()

from mlx_tlstm import rivals  # noqa: E402, F401 (which adds to VARIANTS)
from mlx_tlstm.layers import (  # noqa: E402
    TLSTM,
    TRNN,
    Recurrent,
    StackedLSTM,
    StackedLSTMCell,
    StackedLSTMState,
    TLSTMCell,
    TLSTMState,
    TRNNCell,
    TRNNState,
)
from mlx_tlstm.layers.variants import VARIANTS, CellVariant, make_layer  # noqa: E402
from mlx_tlstm.models.hub import HubError, load, push  # noqa: E402 (OpenBLAS is loaded before MLX)
from mlx_tlstm.models.metadata import ModelMetadata  # noqa: E402
from mlx_tlstm.models.sequence import SequenceModel  # noqa: E402
from mlx_tlstm.models.streaming import StreamingSession  # noqa: E402
from mlx_tlstm.recurrence.scan import scan  # noqa: E402

__all__ = [
    "TLSTM",
    "TRNN",
    "VARIANTS",
    "CellVariant",
    "HubError",
    "ModelMetadata",
    "Recurrent",
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
    "scan",
]

_ON_DEMAND = ("tasks", "training", "visualize")


def __getattr__(name: str) -> ModuleType | str:
    if name in _ON_DEMAND:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__version__":
        try:
            return importlib.metadata.version("mlx-tlstm")
        except importlib.metadata.PackageNotFoundError as error:
            raise AttributeError("mlx_tlstm is not installed, and has no version") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND, "__version__"})

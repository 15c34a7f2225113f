"""Training a configuration, and measuring what came of it; no command line in here."""

from mlx_tlstm.training.evaluation import evaluate, load_run
from mlx_tlstm.training.loop import (
    Callback,
    Result,
    TrainingInterrupted,
    fit,
    prepare,
    train,
)
from mlx_tlstm.training.objective import build_model, encode
from mlx_tlstm.training.progress import Progress, format_metrics
from mlx_tlstm.training.trainer import NonFiniteError, Trainer

__all__ = [
    "Callback",
    "NonFiniteError",
    "Progress",
    "Result",
    "Trainer",
    "TrainingInterrupted",
    "build_model",
    "encode",
    "evaluate",
    "fit",
    "format_metrics",
    "load_run",
    "prepare",
    "train",
]

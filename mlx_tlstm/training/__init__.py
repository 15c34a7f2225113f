"""Train a configuration, evaluate the result; what the commands call, and notebooks too."""

from mlx_tlstm.training.callbacks import Callback
from mlx_tlstm.training.checkpoints import CheckpointError
from mlx_tlstm.training.divergence import NonFiniteError
from mlx_tlstm.training.evaluation import evaluate
from mlx_tlstm.training.loop import (
    Result,
    TrainingInterrupted,
    fit,
    follow,
    join,
    prepare,
    reopen,
    resume,
    train,
)
from mlx_tlstm.training.objective import build_model, encode
from mlx_tlstm.training.origin import task_of
from mlx_tlstm.training.progress import Progress, format_metrics
from mlx_tlstm.training.trackers import (
    TRACKERS,
    Tracker,
    TrackerError,
    make_tracker,
    require_tracker,
)
from mlx_tlstm.training.trainer import Trainer
from mlx_tlstm.training.workers import WorkerLostError, Workers

__all__ = [
    "TRACKERS",
    "Callback",
    "CheckpointError",
    "NonFiniteError",
    "Progress",
    "Result",
    "Tracker",
    "TrackerError",
    "Trainer",
    "TrainingInterrupted",
    "WorkerLostError",
    "Workers",
    "build_model",
    "encode",
    "evaluate",
    "fit",
    "follow",
    "format_metrics",
    "join",
    "make_tracker",
    "prepare",
    "reopen",
    "require_tracker",
    "resume",
    "task_of",
    "train",
]

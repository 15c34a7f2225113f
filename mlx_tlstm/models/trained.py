"""Loading the models that a training run keeps in its folder: ``best`` and ``last``.

What else the folder holds is training's, see :class:`mlx_tlstm.training.runs.RunFolder`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mlx_tlstm.checks import require_choice
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.files import read_json, to_path
from mlx_tlstm.models.folder import CONFIG_FILE, WEIGHTS_FILE
from mlx_tlstm.models.sequence import SequenceModel, keep_origin

#: Within a run: the folder of the model with the best metric, and that of the newest.
WEIGHTS = ("best", "last")


def is_run(path: str | Path) -> bool:
    """Whether a folder is that of a training run, and not of a model, which also has a config.json.

    A model's ``config.json`` has a ``format``, and ``model.safetensors`` lies beside it.

    Raises:
        ValueError: The file is damaged.
    """
    path = to_path("load", "path", path)
    if (path / WEIGHTS_FILE).exists() or not (path / CONFIG_FILE).is_file():
        return False
    values = read_json(path / CONFIG_FILE, "load")
    return not isinstance(values, dict) or "format" not in values


def load_trained(path: Path, config: TrainingConfig, name: str) -> SequenceModel:
    """The ``best`` or ``last`` model of a run, in evaluation mode; the task's data is not needed.

    The model's metadata gets the whole path of the user's data, of which its own folder has the
    file's name only.

    Args:
        path: The run's folder.
        config: The run's configuration.
        name: One of :data:`WEIGHTS`.

    Raises:
        ValueError: The model is not there, or damaged.
    """
    require_choice("RunFolder", "weights", name, WEIGHTS)
    file = path / name / WEIGHTS_FILE
    if not file.is_file():
        other = next((n for n in WEIGHTS if (path / n / WEIGHTS_FILE).is_file()), None)
        advice = f"; {other} is there" if other else ""
        raise ValueError(
            f"[RunFolder] 'weights' must be saved in the run but {str(file)!r} is missing{advice}"
        )
    model = SequenceModel.load(file.parent)
    # The run's other settings may have been edited since it was trained.
    training = (model.metadata.training or config).replace(data=config.data)
    keep_origin(model, dataclasses.replace(model.metadata, training=training))
    return model

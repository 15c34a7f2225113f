"""Experiment trackers behind callbacks: TensorBoard, trackio, Weights & Biases.

Each is an extra of its own, and is imported only when a run asks for it.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from mlx_tlstm.checks import is_integer, require_choice
from mlx_tlstm.files import to_path
from mlx_tlstm.streams import say
from mlx_tlstm.training.callbacks import Callback
from mlx_tlstm.training.reports import EvaluationReport
from mlx_tlstm.training.trainer import Trainer

#: Under which runs are filed where a tracker has projects.
PROJECT = "mlx-tlstm"


class TrackerError(RuntimeError):
    """A tracker cannot be started."""


class Tracker(Callback, abc.ABC):
    """Sends the numbers of each record of ``metrics.jsonl`` to a tracker, by the training step.

    When the tracker fails during training, a warning goes to standard error, nothing more is sent,
    and training goes on.

    Args:
        module: The tracker's package.
        folder: The run's folder; its name is the run's.
    """

    #: The package.
    package: ClassVar[str]

    def __init__(self, module: ModuleType, folder: Path) -> None:
        self._module = module
        self._folder = folder
        self._run: Any = None

    def on_start(self, trainer: Trainer) -> None:
        """Open the run, or go on with it.

        Raises:
            TrackerError: The tracker refuses, as one without an account would.
        """
        settings = dataclasses.asdict(trainer.config)
        settings["parameters"] = trainer.parameter_count
        try:
            self._run = self.open(settings, trainer.step)
        except Exception as error:  # each tracker has its own
            raise TrackerError(
                f"[{type(self).__name__}] {self.package} cannot track the run "
                f"({type(error).__name__}: {error})"
            ) from error

    def on_evaluation(self, record: EvaluationReport) -> None:
        if self._run is None:
            return
        numbers = {
            name: value
            for name, value in record.items()
            if name != "step" and (is_integer(value) or isinstance(value, float))
        }
        try:
            self.log(numbers, record["step"])
        except Exception as error:
            self._run = None
            self._warn("the rest of the run is not tracked", error)

    def on_end(self) -> None:
        if self._run is None:
            return
        try:
            self.close()
        except Exception as error:
            self._warn("the end of the run may not be tracked", error)
        self._run = None

    def _warn(self, consequence: str, error: Exception) -> None:
        say(
            f"Warning: {self.package} failed ({type(error).__name__}: {error}); {consequence}",
            error=True,
        )

    @abc.abstractmethod
    def open(self, settings: dict[str, Any], step: int) -> Any:
        """Open the tracker's run and return it; ``step`` is above 0 if the training is resumed."""

    @abc.abstractmethod
    def log(self, numbers: dict[str, float], step: int) -> None:
        """Send numbers by name."""

    @abc.abstractmethod
    def close(self) -> None:
        """Send what is left."""


class TensorBoard(Tracker):
    """Event files in the run's folder; ``tensorboard --logdir RUN`` shows them."""

    package = "tensorboardX"

    def open(self, settings: dict[str, Any], step: int) -> Any:
        # What a run that was killed logged after its last checkpoint is not to be shown.
        folder = str(self._folder / "tensorboard")
        writer = self._module.SummaryWriter(folder, purge_step=step + 1)
        if not step:
            listing = json.dumps(settings, indent=4)
            writer.add_text("config", "    " + listing.replace("\n", "\n    "), 0)
        return writer

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._run.add_scalar(name, value, step)
        self._run.flush()

    def close(self) -> None:
        self._run.close()


class Trackio(Tracker):
    """A local trackio project; ``trackio show`` shows it."""

    package = "trackio"

    def open(self, settings: dict[str, Any], step: int) -> Any:
        return self._module.init(
            project=PROJECT,
            name=self._folder.name,
            config=settings,
            resume="allow" if step else "never",
        )

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._module.log(numbers, step=step)

    def close(self) -> None:
        self._module.finish()


class WeightsAndBiases(Tracker):
    """A run on Weights & Biases, by the account that ``wandb login`` or its variables name."""

    package = "wandb"

    def open(self, settings: dict[str, Any], step: int) -> Any:
        folder = self._folder.resolve()
        run = self._module.init(
            project=PROJECT,
            name=folder.name,
            id=hashlib.sha256(os.fsencode(folder)).hexdigest()[:16],
            dir=str(folder),
            config=settings,
            resume="allow" if step else None,
        )
        # Its own count of steps cannot go back, as a resumed run does to its last checkpoint.
        run.define_metric("*", step_metric="step")
        return run

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._run.log({**numbers, "step": step})

    def close(self) -> None:
        self._run.finish()


#: Trackers by name, which is that of the extra that installs one.
TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
}


def make_tracker(name: str, folder: str | Path) -> Tracker:
    """The callback of one of :data:`TRACKERS`, for the run in ``folder``.

    Raises:
        ValueError: See :func:`require_tracker`.
    """
    module = require_tracker(name)
    return TRACKERS[name](module, to_path("make_tracker", "folder", folder))


def require_tracker(name: str) -> ModuleType:
    """The package of one of :data:`TRACKERS`.

    Raises:
        ValueError: There is no such tracker, or it is not installed.
    """
    require_choice("make_tracker", "track", name, TRACKERS)
    package = TRACKERS[name].package
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"[make_tracker] 'track' must be a tracker that is installed but {name} is not "
            f"({error}); to install it: pip install {package}"
        ) from error

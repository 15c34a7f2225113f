"""The folder of a training run: which files it holds, and how each is written and read.

A run is to survive a kill at any moment. So a file is either replaced in one step, by renaming a
new one that is already whole, or it only grows by lines, of which the last may break off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import re
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlx.utils import tree_flatten

from mlx_tlstm.checks import is_integer, require, require_choice
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.files import (
    absence,
    json_text,
    make_folder,
    naming,
    read_json_lines,
    remove_leftovers,
    replace_file,
    replace_text,
    sync,
    to_path,
)
from mlx_tlstm.models.folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    write_config,
    write_weights,
)
from mlx_tlstm.models.metadata import ModelMetadata, metrics_from_json
from mlx_tlstm.models.sequence import SequenceModel, loadable_config
from mlx_tlstm.models.trained import WEIGHTS
from mlx_tlstm.tasks import task_type

METRICS_FILE, TEST_FILE = "metrics.jsonl", "test.json"
EVENTS_FILE, CHECKPOINTS, LOCK_FILE = "events.jsonl", "checkpoints", ".lock"
#: Runs go into this folder where the user names none.
DEFAULT_PARENT = Path("runs")


class RunInUseError(OSError):
    """Another process trains in the folder."""


def check_unused(out: str | Path | None) -> None:
    """Check, before any other work, that a new run can be written to a folder; create nothing.

    Args:
        out: The folder; ``None`` stands for a new folder within :data:`DEFAULT_PARENT`.

    Raises:
        ValueError: ``out`` holds a run, is no folder, or could not be written to.
    """
    if out is None:
        _require_writable(DEFAULT_PARENT / "run")
        return
    owner, argument = "RunFolder", "out"
    path = to_path(owner, argument, out)
    valid = path.is_dir() or not os.path.lexists(path)
    require(valid, owner, argument, "a folder", str(out))
    names = (CONFIG_FILE, METRICS_FILE, EVENTS_FILE, TEST_FILE, *WEIGHTS, CHECKPOINTS)
    present = [name for name in names if (path / name).exists()]
    if present:
        raise ValueError(
            f"[{owner}] '{argument}' must be a folder without a run but {str(out)!r} already "
            f"holds {', '.join(present)}; nothing was changed there"
        )
    _require_writable(path)


def _require_writable(path: Path) -> None:
    parent = path.absolute()
    while not parent.exists():
        parent = parent.parent
    writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
    require(writable, "RunFolder", "out", f"writable ({str(parent)!r} is not)", str(path))


def _claim_default(config: TrainingConfig) -> Path:
    """Make a new folder; runs that start within the same second get different ones."""
    make_folder(DEFAULT_PARENT)
    # Their names are any text; a folder's has no separators, and 255 bytes at most.
    names = (re.sub(r"[^\w.+-]", "_", name)[:40] for name in (config.task, config.variant))
    name = "-".join((*names, time.strftime("%Y%m%d-%H%M%S")))
    path = DEFAULT_PARENT / name
    for number in itertools.count(2):
        try:
            path.mkdir()
            sync(DEFAULT_PARENT)
            break
        except FileExistsError:
            path = DEFAULT_PARENT / f"{name}-{number}"
    return path


def _write_process(lock: int) -> None:
    """Tell a process that comes later who has the lock."""
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    - ``config.json``: the :class:`TrainingConfig`;
    - ``metrics.jsonl``: one line for each evaluation, see :func:`mlx_tlstm.training.train`;
    - ``events.jsonl``: one line for each divergence, see :func:`mlx_tlstm.training.train`;
    - ``best``, ``last``: the model with the best metric so far, and the newest; each is a folder as
      :meth:`mlx_tlstm.SequenceModel.save` writes it;
    - ``checkpoints``: see :class:`mlx_tlstm.training.checkpoints.CheckpointStore`;
    - ``test.json``: metrics of the best model on the test split, written when training ends;
    - ``.lock``: locked by the process that trains, while it trains.

    Files that do not grow are written under another name and then renamed, so that no reader ever
    sees half of one. In a model's folder ``config.json`` is written once, before the first weights;
    after that only ``model.safetensors`` is replaced, which holds the metrics of its weights too.
    So weights, metrics and configuration always belong together.

    Args:
        path: The folder.
        config: What it was trained with.
    """

    path: Path
    config: TrainingConfig

    @classmethod
    def create(cls, out: str | Path | None, config: TrainingConfig) -> RunFolder:
        """Make the folder of a new run and save its configuration.

        Where ``out`` is ``None``, the folder is made within :data:`DEFAULT_PARENT`, and its name is
        the task, the variant and the time.

        Raises:
            ValueError: See :func:`check_unused`.
            RunInUseError: Another process is at work in the folder.
            OSError: The folder or the file cannot be written.
        """
        check_unused(out)
        path = _claim_default(config) if out is None else to_path("RunFolder", "out", out)
        run = cls(path, config)
        make_folder(path)
        with run.lock():
            check_unused(path)  # another process may have been quicker
            run.save_config()
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run.

        Raises:
            ValueError: ``path`` holds no run, or its configuration is damaged.
        """
        path = to_path("RunFolder", "run", path)
        if not os.path.lexists(path):
            raise ValueError(f"[RunFolder] {absence(path)}")
        present = (path / CONFIG_FILE).is_file()
        require(present, "RunFolder", "run", f"a folder that holds {CONFIG_FILE}", str(path))
        # Of a run whose weights are still to come, its models have a config.json alone.
        inside = path.name in WEIGHTS and (path.parent / CHECKPOINTS).is_dir()
        model = inside or (path / WEIGHTS_FILE).exists()
        expected = "a training run's folder, no model's"
        expected += f" ({path.parent} is one)," if inside else ","
        require(not model, "RunFolder", "run", expected, str(path))
        config = TrainingConfig.load(path / CONFIG_FILE)
        task_type(config.task)
        return cls(path, config)

    def save_config(self) -> None:
        """Write ``config.json``, which makes the folder a run."""
        replace_file(self.path / CONFIG_FILE, self.config.save)

    @property
    def ended(self) -> bool:
        """Whether training came to its end."""
        return (self.path / TEST_FILE).exists()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in the folder while the context is entered.

        Files that a killed process had begun to write are removed.

        Raises:
            RunInUseError: Another process does.
            OSError: The folder cannot be written, or its file system has no locks.
        """
        file = self.path / LOCK_FILE
        lock = FileLock(file, blocking=False, preserve_lock_file=True, on_acquired=_write_process)
        try:
            held = lock.acquire()
        except Timeout as error:
            number = file.read_text().strip()
            process = f"process {number}" if number else "another process"
            raise RunInUseError(
                f"[RunFolder] 'run' must not be in use but {process} trains in {str(self.path)!r}; "
                "wait for it to end, or stop it"
            ) from error
        except OSError as error:
            advice = ""
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                advice = " (its file system has no locks; take a folder on a local disk)"
            raise OSError(error.errno, f"{error.strerror}{advice}", str(file)) from error
        with held:
            for folder in ("", *WEIGHTS, CHECKPOINTS):
                remove_leftovers(self.path / folder)
            yield

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``. The operating system has it then, the disk later."""
        self._append(METRICS_FILE, record)

    def read_metrics(self, *needed: str) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``, oldest first; an empty list if there is no file.

        A last line that breaks off, as a killed process leaves it, is ignored.

        Args:
            needed: Names of numbers that each record must have, in addition to ``samples``.

        Raises:
            ValueError: The file is damaged in another way, or a number is missing.
        """
        records = self._read(METRICS_FILE, {"samples": float, **dict.fromkeys(needed, float)})
        return [metrics_from_json(record) for record in records]

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add one line to ``events.jsonl``."""
        self._append(EVENTS_FILE, event)

    def read_events(self) -> list[dict[str, Any]]:
        """The records of ``events.jsonl``, oldest first; errors as of :meth:`read_metrics`."""
        return self._read(EVENTS_FILE, {"event": str})

    def save_test_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write ``test.json``."""
        replace_text(self.path / TEST_FILE, json_text(metrics, indent=2))

    def describe_model(self, model: SequenceModel, anew: bool = False) -> None:
        """Write ``config.json`` into the folders ``best`` and ``last``, unless it is there.

        Args:
            model: What was trained.
            anew: Write it also where it is there.

        Raises:
            ValueError: No model could be loaded by it; nothing was written.
        """
        files = [self.path / name / CONFIG_FILE for name in WEIGHTS]
        missing = [file for file in files if anew or not file.exists()]
        if not missing:
            return
        config = loadable_config(model)
        for file in missing:
            file.parent.mkdir(exist_ok=True)
            replace_file(file, partial(write_config, config=config))
            sync(self.path)

    def save_model(self, name: str, model: SequenceModel, metrics: Mapping[str, Any]) -> None:
        """Write a model's weights and their metrics to ``best`` or ``last``.

        Raises:
            ValueError: ``metrics`` are not numbers and words by name; nothing was written.
        """
        require_choice("RunFolder", "weights", name, WEIGHTS)
        metrics = ModelMetadata(metrics=metrics).metrics
        self.describe_model(model)
        parameters = dict(tree_flatten(model.parameters()))
        replace_file(
            self.path / name / WEIGHTS_FILE, lambda path: write_weights(path, parameters, metrics)
        )

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        path = self.path / name
        with naming(path), path.open("a") as file:
            file.write(json_text(record))

    def _read(self, name: str, needed: Mapping[str, type]) -> list[dict[str, Any]]:
        path, owner = self.path / name, type(self).__name__
        records = read_json_lines(path, owner) if path.exists() else []
        for line, record in enumerate(records, start=1):
            for key, kind in needed.items():
                value = record.get(key)
                # JSON has null for a number that is not finite.
                number = is_integer(value) or (value is None and key in record)
                valid = isinstance(value, kind) or (kind is float and number)
                expected = "a number" if kind is float else "a word"
                require(valid, owner, f"{path}, line {line}: {key}", expected, value)
        return records

"""The folder of a training run: its files, and how they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_tlstm.checks import is_integer, require, require_choice
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.files import (
    TEMPORARY,
    json_text,
    load_arrays,
    naming,
    read_json,
    read_json_lines,
    replace_file,
    require_like,
    save_arrays,
)
from mlx_tlstm.metadata import metrics_from_json, symbols_from_json
from mlx_tlstm.paths import absence, to_path
from mlx_tlstm.snapshot import replace_weights
from mlx_tlstm.tasks import TASKS

WEIGHTS = ("best", "last")
WEIGHTS_FILES = tuple(f"{name}.safetensors" for name in WEIGHTS)
CONFIG_FILE, METRICS_FILE, TEST_FILE = "config.json", "metrics.jsonl", "test.json"
SYMBOLS_FILE = "symbols.json"
EVENTS_FILE, CHECKPOINTS, LOCK_FILE = "events.jsonl", "checkpoints", ".lock"
#: Where runs go whose user named no folder.
DEFAULT_PARENT = Path("runs")


class RunInUseError(OSError):
    """Another process trains in the folder."""


def check_unused(out: str | Path | None) -> None:
    """Refuse a folder that cannot take a new run, before any work; nothing is created.

    Args:
        out: The folder; ``None`` is one of its own in :data:`DEFAULT_PARENT`.

    Raises:
        ValueError: ``out`` holds a run, is no folder, or could not be written to.
    """
    if out is None:
        _require_writable(DEFAULT_PARENT / "run")
        return
    owner, argument = "RunFolder", "out"
    path = to_path(owner, argument, out)
    require(not path.exists() or path.is_dir(), owner, argument, "a folder", str(out))
    names = (CONFIG_FILE, METRICS_FILE, EVENTS_FILE, TEST_FILE, *WEIGHTS_FILES, CHECKPOINTS)
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
    """Make a new folder, which no other process gets, also where runs start in one second."""
    DEFAULT_PARENT.mkdir(exist_ok=True)
    name = f"{config.task}-{config.variant}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = DEFAULT_PARENT / name
    for number in itertools.count(2):
        try:
            path.mkdir()
            break
        except FileExistsError:
            path = DEFAULT_PARENT / f"{name}-{number}"
    return path


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    - ``config.json``: the :class:`TrainingConfig`;
    - ``symbols.json``: of a language model, the byte value of each symbol;
    - ``metrics.jsonl``: a record an evaluation, see :func:`mlx_tlstm.training.train`;
    - ``events.jsonl``: a record a divergence, see :func:`mlx_tlstm.training.train`;
    - ``best.safetensors``, ``last.safetensors``: weights, in the type they were trained in;
    - ``checkpoints``: see :class:`mlx_tlstm.training.checkpoints.CheckpointStore`;
    - ``test.json``: metrics of the best weights on the test split, written when training ends;
    - ``.lock``: locked by the process that trains.

    All but the growing ``metrics.jsonl`` and ``events.jsonl`` are written under another name and
    renamed, so that none is ever half there.

    Args:
        path: The folder.
        config: What it was trained with.
    """

    path: Path
    config: TrainingConfig

    @classmethod
    def create(
        cls, out: str | Path | None, config: TrainingConfig, symbols: bytes | None = None
    ) -> RunFolder:
        """Make the folder of a new run and save its configuration, and the symbols of its text.

        Where ``out`` is ``None`` it is named by task, variant and time in :data:`DEFAULT_PARENT`.

        Raises:
            ValueError: See :func:`check_unused`.
            RunInUseError: Another process is at work in the folder.
            OSError: The folder or the file cannot be written.
        """
        check_unused(out)
        path = _claim_default(config) if out is None else to_path("RunFolder", "out", out)
        run = cls(path, config)
        path.mkdir(parents=True, exist_ok=True)
        with run.lock():
            check_unused(path)  # another process may have been quicker
            if symbols is not None:
                text = json_text(list(symbols))
                replace_file(run.path / SYMBOLS_FILE, lambda path: path.write_text(text))
            run.save_config()  # last: it makes the folder a run
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
        config = TrainingConfig.load(path / CONFIG_FILE)
        require_choice("RunFolder", "task", config.task, TASKS)
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
        """Keep other processes from training in the folder; what a killed one left is removed.

        Raises:
            RunInUseError: Another process does.
            OSError: The folder cannot be written.
        """
        # Opened to append, since the file tells a process that comes later who has it.
        with (self.path / LOCK_FILE).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise RunInUseError(
                    f"[RunFolder] 'run' must not be in use but process {file.read().strip()} "
                    f"trains in {str(self.path)!r}"
                ) from error
            file.truncate(0)
            print(os.getpid(), file=file, flush=True)
            for leftover in self.path.glob(f"{TEMPORARY}*"):
                leftover.unlink()
            yield

    def read_symbols(self) -> bytes | None:
        """The byte value of each symbol; ``None`` where the task is not on text.

        Raises:
            ValueError: The file is damaged.
        """
        path = self.path / SYMBOLS_FILE
        if not path.exists():
            return None
        try:
            return symbols_from_json(read_json(path, "RunFolder"))
        except ValueError as error:
            raise ValueError(f"[RunFolder] '{path}' must hold symbols but {error}") from error

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; it is on its way to the disk on return."""
        self._append(METRICS_FILE, record)

    def read_metrics(self, *needed: str) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``, oldest first; none where there is no file.

        Args:
            needed: Numbers that each record must have, beside ``samples``.

        Raises:
            ValueError: The file is damaged, but for a last line that was not written to its end.
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
        text = json_text(metrics, indent=2)
        replace_file(self.path / TEST_FILE, lambda path: path.write_text(text))

    def save_weights(self, model: nn.Module, name: str) -> None:
        """Write the model's weights as ``best`` or ``last``."""
        require_choice("RunFolder", "weights", name, WEIGHTS)
        arrays = dict(tree_flatten(model.parameters()))
        replace_file(self.path / f"{name}.safetensors", lambda path: save_arrays(path, arrays))

    def weights_file(self, name: str) -> Path:
        """Where the ``best`` or ``last`` weights are.

        Raises:
            ValueError: They are not there.
        """
        require_choice("RunFolder", "weights", name, WEIGHTS)
        path = self.path / f"{name}.safetensors"
        if not path.is_file():
            other = next((n for n in WEIGHTS if (self.path / f"{n}.safetensors").is_file()), None)
            advice = f"; {other}.safetensors is there" if other else ""
            raise ValueError(
                f"[RunFolder] 'weights' must be saved in the run but {str(path)!r} is missing"
                + advice
            )
        return path

    def load_weights(self, model: nn.Module, name: str) -> None:
        """Put the ``best`` or ``last`` weights into a model built from :attr:`config`.

        Raises:
            ValueError: The file is missing, damaged, or belongs to another model.
        """
        path = self.weights_file(name)
        weights = load_arrays(path, "RunFolder")
        require_like(
            "RunFolder", str(path), weights, dict(tree_flatten(model.parameters())), CONFIG_FILE
        )
        replace_weights(model, tree_unflatten(list(weights.items())))

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

"""The folder of a training run: its files, and how they are written."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm.checks import require, require_choice
from mlx_tlstm.config import TrainingConfig

WEIGHTS = ("best", "last")
CONFIG_FILE, METRICS_FILE, TEST_FILE = "config.json", "metrics.jsonl", "test.json"


def check_unused(out: str | Path) -> None:
    """Refuse a folder that cannot take a new run, before any work; nothing is created.

    Raises:
        ValueError: ``out`` holds a run, is no folder, or could not be written to.
    """
    path = Path(out)
    owner, argument = "RunFolder", "out"
    require(not path.exists() or path.is_dir(), owner, argument, "a folder", str(out))
    names = (CONFIG_FILE, METRICS_FILE, TEST_FILE, *(f"{name}.safetensors" for name in WEIGHTS))
    present = [name for name in names if (path / name).exists()]
    if present:
        raise ValueError(
            f"[{owner}] '{argument}' must be a folder without a run but {str(out)!r} already "
            f"holds {', '.join(present)}; nothing was changed there"
        )
    parent = path.absolute()
    while not parent.exists():
        parent = parent.parent
    writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
    require(writable, owner, argument, f"writable ({str(parent)!r} is not)", str(out))


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    - ``config.json``: the :class:`TrainingConfig`;
    - ``metrics.jsonl``: a record an evaluation, see :func:`mlx_tlstm.training.train`;
    - ``best.safetensors``, ``last.safetensors``: weights, in the type they were trained in;
    - ``test.json``: metrics of the best weights on the test split, written when training ends.

    All but the growing ``metrics.jsonl`` are written under another name and renamed, so that none
    is ever half there.

    Args:
        path: The folder.
        config: What it was trained with.
    """

    path: Path
    config: TrainingConfig

    @classmethod
    def create(cls, out: str | Path, config: TrainingConfig) -> RunFolder:
        """Make the folder of a new run and save its configuration.

        Raises:
            ValueError: See :func:`check_unused`.
            OSError: The folder or the file cannot be written.
        """
        check_unused(out)
        run = cls(Path(out), config)
        run.path.mkdir(parents=True, exist_ok=True)
        run._replace(CONFIG_FILE, config.save)
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run.

        Raises:
            ValueError: ``path`` holds no run, or its configuration is damaged.
        """
        present = (Path(path) / CONFIG_FILE).is_file()
        require(present, "RunFolder", "run", f"a folder that holds {CONFIG_FILE}", str(path))
        return cls(Path(path), TrainingConfig.load(Path(path) / CONFIG_FILE))

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; it is on its way to the disk on return."""
        with (self.path / METRICS_FILE).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``, oldest first; none where there is no file."""
        path = self.path / METRICS_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def save_test_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write ``test.json``."""
        text = json.dumps(metrics, indent=2) + "\n"
        self._replace(TEST_FILE, lambda path: path.write_text(text))

    def save_weights(self, model: nn.Module, name: str) -> None:
        """Write the model's weights as ``best`` or ``last``."""
        require_choice("RunFolder", "weights", name, WEIGHTS)
        self._replace(f"{name}.safetensors", lambda path: model.save_weights(str(path)))

    def load_weights(self, model: nn.Module, name: str) -> None:
        """Put the ``best`` or ``last`` weights into a model built from :attr:`config`.

        Raises:
            ValueError: The file is missing, damaged, or belongs to another model.
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
        try:
            weights = mx.load(str(path))
            mx.eval(weights)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"[RunFolder] '{path}' must be a safetensors file but {reason}"
            ) from error
        found = {key: (array.shape, array.dtype) for key, array in weights.items()}
        parameters = tree_flatten(model.parameters())
        expected = {key: (array.shape, array.dtype) for key, array in parameters}
        for key in sorted(found.keys() | expected.keys()):
            require(
                found.get(key) == expected.get(key),
                "RunFolder",
                f"{path}: {key}",
                f"{_describe(expected.get(key))}, as {CONFIG_FILE} says,",
                _describe(found.get(key)),
            )
        model.load_weights(list(weights.items()))

    def _replace(self, name: str, write: Callable[[Path], object]) -> None:
        """Let ``write`` fill a temporary file beside ``name``, then rename it."""
        # The ending stays last: MLX picks the format by it.
        temporary = self.path / f".writing-{name}"
        try:
            write(temporary)
            os.replace(temporary, self.path / name)
        finally:
            temporary.unlink(missing_ok=True)


def _describe(array: tuple[tuple[int, ...], mx.Dtype] | None) -> str:
    if array is None:
        return "absent"
    shape, dtype = array
    return f"{dtype} {list(shape)}".removeprefix("mlx.core.")

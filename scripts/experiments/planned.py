"""Planned training runs: their names, what a folder holds of them, and whether they can run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from experiments.paper import as_printed
from experiments.results import read_result
from mlx_tlstm import VARIANTS, training
from mlx_tlstm.checks import require
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks import Task, make_task
from mlx_tlstm.training.memory_prediction import require_fits

#: Settings that do not change what a run learns.
BOOKKEEPING = ("checkpoint_every", "checkpoint_seconds", "keep_checkpoints")
#: How a run may differ from others of its task, variant, depth and seed, and the words for it in
#: the folder's name.
_WAYS = {
    "forget_bias": "forget",
    "beta2": "beta",
    "clip_norm": "clip",
    "clip_value": "clipvalue",
}


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run and the name of its folder."""

    name: str
    config: TrainingConfig

    @classmethod
    def of(
        cls, config: TrainingConfig, label: str | None = None, way: Iterable[str] = ()
    ) -> PlannedRun:
        """Named by label or task, variant, depth, seed, and how it departs from the paper.

        ``way`` are settings that tell it from others of its label.
        """
        paper = as_printed(config.task)
        parts = [label or config.task, config.variant, f"L{config.depth}", f"s{config.seed}"]
        for setting, word in _WAYS.items():
            value = getattr(config, setting)
            if value != getattr(paper, setting):
                parts.append(word + (value if isinstance(value, str) else f"{value:g}"))
        named = (*_WAYS, "variant", "depth", "samples")  # samples go with the depth
        parts += [f"{name}{getattr(config, name)}" for name in way if name not in named]
        return cls("-".join(parts), config)


def check_runs(runs: Sequence[PlannedRun], folder: Path, compare_data: bool = True) -> None:
    """Refuse a folder that holds other runs under the planned names.

    Compared are all settings but those of checkpoints; of the user's own data the name alone, so
    that it may have moved.

    Args:
        runs: What is planned.
        folder: Of the runs' folders; need not exist.
        compare_data: Whether the data counts.

    Raises:
        ValueError: A run was trained with other settings, or two are planned under one name.
    """
    planned: dict[str, TrainingConfig] = {}
    for run in runs:
        known = planned.setdefault(run.name, run.config)
        require(known == run.config, "sweep", "runs", "of one configuration a name", run.name)
    for name, config in planned.items():
        result = read_result(folder / name)
        if result is None:
            continue
        there, here = (_compared(one, compare_data) for one in (result.config, config))
        differing = [f"{k} {there[k]} in place of {here[k]}" for k in here if there[k] != here[k]]
        if differing:
            raise ValueError(
                f"[sweep] 'out' must be free for the sweep's runs but {str(folder / name)!r} was "
                f"trained with {', '.join(differing)}; move it away or choose another folder"
            )


def unsettled(runs: Sequence[PlannedRun], folder: Path) -> list[PlannedRun]:
    """Each of the runs once that has neither ended nor diverged in ``folder``."""
    found = {run: read_result(folder / run.name) for run in runs}
    return [run for run, result in found.items() if result is None or not result.settled]


def selected(runs: Sequence[PlannedRun], patterns: Sequence[str]) -> list[PlannedRun]:
    """Runs whose name matches one of the patterns; all where there is none."""
    return [run for run in runs if not patterns or any(fnmatchcase(run.name, p) for p in patterns)]


def backend_of(config: TrainingConfig, backend: str | None) -> str | None:
    """The backend of a run where ``backend`` is asked for: without a tensor it is MLX's own."""
    return backend if VARIANTS[config.variant].axes else None


def check_trainable(runs: Sequence[PlannedRun], backend: str | None = None) -> None:
    """Refuse runs whose data is missing or does not do, or that this machine has no memory for.

    Data is downloaded here where it has to be.

    Raises:
        ValueError: A setting does not fit the task, its data, the machine or the backend.
        FileNotFoundError, DataUnavailableError: The data cannot be had.
    """
    tasks: dict[tuple[Any, ...], Task] = {}
    for run in runs:
        config = run.config
        key = (config.task, config.length, config.batch_size, config.data)
        if key not in tasks:
            tasks[key] = make_task(config)
        model = training.build_model(config, tasks[key], backend_of(config, backend))  # lazy
        require_fits(config, tasks[key], model)


def _compared(config: TrainingConfig, data: bool) -> dict[str, Any]:
    left_out = BOOKKEEPING if data else (*BOOKKEEPING, "data")
    return {k: v for k, v in config.without_folder().items() if k not in left_out}

"""What came of a training run, read from its folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_tlstm.checks import require
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.files import read_json, replace_text
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.reports import best_of
from mlx_tlstm.training.runs import CONFIG_FILE, TEST_FILE, RunFolder

#: Beside a run's own files: the machines that trained it, and its task's note on evaluation.
ORIGIN_FILE = "origin.json"
#: What the paper calls solved in its Table 2, and in its text.
NEARLY_SOLVED, SOLVED = 0.99, 1.0


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A run so far.

    Attributes:
        name: Its folder's name.
        config: What it is trained with.
        state: ``"ended"``, ``"diverged"`` or ``"unfinished"``.
        split: The split that training is watched on; empty before the first evaluation.
        best: Best value of the task's metric there; ``None`` before the first evaluation.
        test: Value of the metric of the best weights on the test split; ``None`` before the end.
        samples: Training sequences up to the last evaluation.
        seconds: Time in training up to then.
        to_99: Training sequences until more than 99 % of the answers were right; ``None`` where
            that was not reached, and where the metric is no accuracy.
        to_100: Likewise until all were right.
        note: What belongs beside its figures; empty where nothing does, or none was recorded.
        machines: Those that trained it, as :class:`mlx_tlstm.checking.timing.Machine` describes
            them; none where that was not recorded.
    """

    name: str
    config: TrainingConfig
    state: str
    split: str
    best: float | None
    test: float | None
    samples: int
    seconds: float
    to_99: int | None
    to_100: int | None
    note: str
    machines: tuple[Mapping[str, Any], ...]

    @property
    def metric(self) -> str:
        """``"accuracy"`` or ``"bpc"``."""
        return TASKS[self.config.task].metric

    @property
    def settled(self) -> bool:
        """Whether nothing is left to train."""
        return self.state != "unfinished"

    def as_json(self) -> dict[str, Any]:
        """All of it, fit for JSON; of the user's own data only the name."""
        return dataclasses.asdict(self) | {"config": self.config.without_folder()}


def read_result(path: Path) -> RunResult | None:
    """The run in a folder; ``None`` where there is none.

    Raises:
        ValueError: One of its files is damaged.
    """
    if not (path / CONFIG_FILE).is_file():
        return None
    run = RunFolder.open(path)
    metric = TASKS[run.config.task].metric
    records = run.read_metrics("seconds", metric)
    events, origin = run.read_events(), read_origin(path)
    best = best_of(metric, records)
    diverged = bool(events) and events[-1]["event"] == "stop"
    test = _read(path / TEST_FILE, metric)[metric] if run.ended else None
    accuracies = [(r["samples"], r[metric]) for r in records if metric == "accuracy"]
    return RunResult(
        name=path.name,
        config=run.config,
        state="ended" if run.ended else "diverged" if diverged else "unfinished",
        split=records[-1].get("split", "") if records else "",
        best=best and best[metric],
        test=test,
        samples=records[-1]["samples"] if records else 0,
        seconds=records[-1]["seconds"] if records else 0.0,
        to_99=next((samples for samples, value in accuracies if value > NEARLY_SOLVED), None),
        to_100=next((samples for samples, value in accuracies if value >= SOLVED), None),
        note=origin["note"],
        machines=tuple(origin["machines"]),
    )


def read_origin(path: Path) -> dict[str, Any]:
    """What :func:`record_origin` wrote into a run's folder; nothing where it did not."""
    file = path / ORIGIN_FILE
    return _read(file, "note", "machines") if file.exists() else {"note": "", "machines": []}


def _read(file: Path, *names: str) -> dict[str, Any]:
    values = read_json(file, "read_result")
    valid = isinstance(values, dict) and values.keys() >= set(names)
    require(valid, "read_result", str(file), f"an object with {', '.join(names)}", values)
    return values


def record_origin(path: Path, machine: Mapping[str, Any], note: str) -> None:
    """Add a machine to those that train the run in ``path``, whose lock the caller holds."""
    machines = read_origin(path)["machines"]
    if machine not in machines:
        machines.append(machine)
    text = json.dumps({"note": note, "machines": machines}, indent=2) + "\n"
    replace_text(path / ORIGIN_FILE, text)

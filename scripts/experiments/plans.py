"""What each target trains, at each scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.paper import EXPERIMENTS, PAPER_VARIANTS, TABLES, experiment
from experiments.planned import PlannedRun
from mlx_tlstm.config import MEMORY_INITS
from mlx_tlstm.tasks import TASKS

SCALES = ("smoke", "laptop", "paper")
FIGURES = {
    "figure-3": ("Fig. 3", ("wikipedia",)),
    "figure-4": ("Fig. 4", ("addition", "memorization")),
    "figure-5": ("Fig. 5", ("mnist", "pmnist")),
}
STARTS = "starts"
#: From cheap to dear.
TARGETS = ("figure-4", "table-2", STARTS, "figure-5", "table-3", "figure-3", "table-1")


@dataclasses.dataclass(frozen=True)
class Size:
    """How a scale differs from the paper on one task.

    Args:
        depths: L of the figure.
        of_table: L for the rows of the table, by the L that they print; the rest is not run.
        hidden_size: M of all variants; ``None`` for the paper's.
        seeds: How many, from 0.
        settings: In place of those of the task's paper settings.
    """

    depths: tuple[int, ...]
    of_table: Mapping[int | None, int]
    hidden_size: int | None = None
    seeds: int = 1
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _figure_of(task: str) -> str:
    return next(source for source, tasks in FIGURES.values() if task in tasks)


def _as_printed(task: str) -> Size:
    """The paper's own size."""
    printed = {row.depth for table in TABLES.values() for row, of, _ in table.cells() if of == task}
    depths = experiment(_figure_of(task), task).depths
    return Size(depths, {depth: depth for depth in printed if depth is not None})


_SMOKE = {"batch_size": 10, "samples": 200, "eval_every": 100}
_SMOKE_ROWS = {**_SMOKE, "length": 14, "epochs": None}
_SMOKE_TEXT = {"length": 10, "epochs": None, "samples": 400, "eval_every": 400}
_LAPTOP = {"samples": 30_000}
_LAPTOP_ROWS = {"length": 28, "epochs": 1, "eval_every": 10_000}
_LAPTOP_TEXT = {
    "batch_size": 32,
    "learning_rate": 3e-3,
    "epochs": 1,
    "samples": 20_000,
    "eval_every": 10_000,
}

#: By scale and task. The tables' printed L is None for others' models.
SIZES: dict[str, dict[str, Size]] = {
    "smoke": {
        "addition": Size((1, 2), {7: 1, 10: 2, None: 2}, 10, 1, {"length": 2, **_SMOKE}),
        "memorization": Size((1, 2), {7: 1, 10: 2, None: 2}, 10, 1, {"length": 2, **_SMOKE}),
        "wikipedia": Size((1, 2), {6: 2}, 10, 1, _SMOKE_TEXT),
        "mnist": Size((1, 2), {3: 1, 5: 2}, 10, 1, _SMOKE_ROWS),
        "pmnist": Size((1, 2), {3: 1, 5: 2}, 10, 1, _SMOKE_ROWS),
    },
    "laptop": {
        "addition": Size((1, 4), {7: 4, 10: 4, None: 4}, 100, 2, {"length": 2, **_LAPTOP}),
        "memorization": Size((1, 4), {7: 4, 10: 4, None: 4}, 50, 2, {"length": 3, **_LAPTOP}),
        "wikipedia": Size((1, 2, 4), {6: 4}, 64, 1, _LAPTOP_TEXT),
        "mnist": Size((1, 3), {3: 3, 5: 3}, 50, 1, _LAPTOP_ROWS),
        "pmnist": Size((1, 3), {3: 3, 5: 3}, 50, 1, _LAPTOP_ROWS),
    },
    "paper": {task: _as_printed(task) for task in TASKS},
}

#: What :data:`STARTS` starts in several ways, in place of memorization's paper settings.
STARTED: dict[str, dict[str, Any]] = {
    "smoke": {"variant": "2d-tlstm+cn", "depth": 2, "hidden_size": 10, "length": 2, **_SMOKE},
    "laptop": {
        "variant": "2d-tlstm+cn",
        "depth": 4,
        "hidden_size": 50,
        "length": 5,
        "learning_rate": 3e-3,
        **_LAPTOP,
    },
    "paper": {},
}
#: One of them at a time departs from the default.
WAYS_TO_START: dict[str, tuple[Any, ...]] = {
    "memory_init": MEMORY_INITS,
    "weight_scale": (0.5, 1.0, 2.0),
    "clip_norm": (0.0, 0.1, 1.0, 10.0),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What a sweep is asked for.

    Args:
        scale: One of :data:`SCALES`.
        seeds: How many, from 0; ``None`` leaves it to the scale.
        data: By task, the user's own data; for the other tasks it is downloaded or generated.
    """

    scale: str
    seeds: int | None = None
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def seeds_of(self, task: str) -> range:
        """The seeds of a task's runs."""
        return range(self.seeds or SIZES[self.scale][task].seeds)

    def run(self, source: str, task: str, variant: str, depth: int, seed: int) -> PlannedRun:
        """A run of one of the paper's figures or tables at this scale.

        Args:
            source: Where the paper has it, which decides M at the paper's scale.
            task: Its task.
            variant: Its variant.
            depth: L at this scale.
            seed: Its seed.
        """
        size = SIZES[self.scale][task]
        config = (
            TASKS[task]
            .paper()
            .replace(
                variant=variant,
                depth=depth,
                hidden_size=size.hidden_size or experiment(source, task).hidden_sizes[variant],
                seed=seed,
                data=self.data.get(task),
                **size.settings,
            )
        )
        return PlannedRun.of(config)


def departures(target: str, request: Request) -> list[str]:
    """How each task's runs differ from the paper's, in words; nothing at the paper's scale."""
    if request.scale == "paper":
        return []
    if target == STARTS:
        return [_departure("memorization", STARTED[request.scale])]
    tasks = FIGURES[target][1] if target in FIGURES else tuple(TABLES[target].rows[0].cells)
    lines = []
    for task in tasks:
        size = SIZES[request.scale][task]
        line = _departure(task, {"hidden_size": size.hidden_size, **size.settings})
        if one_width(task, request):
            line += " M is the same in all variants, where the paper fixes the parameter count."
        lines.append(line)
    return lines


def one_width(task: str, request: Request) -> bool:
    """Whether the variants share one M where the paper's do not."""
    printed = set(experiment(_figure_of(task), task).hidden_sizes.values())
    return len(printed) > 1 and SIZES[request.scale][task].hidden_size is not None


def _departure(task: str, settings: Mapping[str, Any]) -> str:
    paper = dataclasses.asdict(TASKS[task].paper())
    changed = [
        f"{name.replace('_', ' ')} {'none' if value is None else f'{value:,}'}"
        for name, value in settings.items()
        if value != paper[name] and name not in ("variant", "depth")
    ]
    return f"{task} is trained with {', '.join(changed)} in place of the paper's."


def table_runs(target: str, request: Request) -> dict[tuple[str, str], list[PlannedRun]]:
    """Runs for the rows of a table, by task and the model's printed name, a run a seed."""
    table = TABLES[target]
    found: dict[tuple[str, str], list[PlannedRun]] = {}
    for row, task, _ in table.cells():
        depth = SIZES[request.scale][task].of_table.get(row.depth)
        if row.variant is None or depth is None:
            continue
        entry = any(table.source == e.source and task in e.tasks for e in EXPERIMENTS)
        source = table.source if entry else _figure_of(task)
        found[task, row.model] = [
            request.run(source, task, row.variant, depth, seed) for seed in request.seeds_of(task)
        ]
    return found


def figure_runs(target: str, request: Request) -> list[PlannedRun]:
    """Runs of a figure's panels: every seed, depth, task and variant, cheap ones first."""
    source, tasks = FIGURES[target]
    points = sorted(
        (seed, depth, number)
        for number, task in enumerate(tasks)
        for depth in SIZES[request.scale][task].depths
        for seed in request.seeds_of(task)
    )
    return [
        request.run(source, tasks[number], variant, depth, seed)
        for seed, depth, number in points
        for variant in PAPER_VARIANTS
    ]


def start_runs(request: Request) -> dict[str, list[PlannedRun]]:
    """Runs that start in several ways, by the setting in which they differ, a run a seed each."""
    config = TASKS["memorization"].paper().replace(**STARTED[request.scale])
    return {
        setting: [
            PlannedRun.of(config.replace(seed=seed, **{setting: value}))
            for seed in request.seeds_of("memorization")
            for value in values
        ]
        for setting, values in WAYS_TO_START.items()
    }


def planned_runs(target: str, request: Request) -> list[PlannedRun]:
    """All runs of a target, each once."""
    if target in TABLES:
        runs = [run for runs in table_runs(target, request).values() for run in runs]
    elif target in FIGURES:
        runs = figure_runs(target, request)
    else:
        runs = [run for runs in start_runs(request).values() for run in runs]
        runs.sort(key=lambda run: run.config.seed)
    return list(dict.fromkeys(runs))

"""What each target trains, at each scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from experiments.paper import (
    BEST_VARIANT,
    EXPERIMENTS,
    PAPER_VARIANTS,
    TABLES,
    as_printed,
    experiment,
    figure_of,
    symbols_of,
)
from experiments.planned import PlannedRun
from experiments.studies import STUDIES, Way
from experiments.widths import equal_width, parameter_count
from mlx_tlstm import VARIANTS
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.rivals import RIVALS
from mlx_tlstm.tasks import TASKS

SCALES = ("smoke", "laptop", "paper")


class Panels(NamedTuple):
    """The performance panels of one of the paper's figures.

    Attributes:
        source: Where the paper has them.
        tasks: A panel each.
        changes: Settings in place of the paper's, whatever the scale.
    """

    source: str
    tasks: tuple[str, ...]
    changes: Mapping[str, Any] = MappingProxyType({})


_ALGORITHMIC = ("addition", "memorization")
FIGURES = {
    "figure-3": Panels("Fig. 3", ("wikipedia",)),
    "figure-4": Panels("Fig. 4", _ALGORITHMIC),
    "figure-4-lag": Panels("Fig. 4", _ALGORITHMIC, {"forget_bias": "lag"}),
    "figure-5": Panels("Fig. 5", ("mnist", "pmnist")),
}
#: Each task by itself, with its own settings.
EACH_TASK = "tasks"
#: From cheap to dear.
TARGETS = (
    *(EACH_TASK, "figure-4", "figure-4-lag", "table-2", *STUDIES),
    *("figure-5", "table-3", "figure-3", "table-1"),
)


@dataclasses.dataclass(frozen=True)
class Size:
    """How a scale differs from the paper on one task.

    Args:
        depths: L of the figure.
        of_table: The L trained here for a row of the table, by the L that it prints; rows of others
            are not run.
        hidden_size: M of all variants; ``None`` for the paper's.
        seeds: How many, from 0.
        settings: In place of those of the task's paper settings.
    """

    depths: tuple[int, ...]
    of_table: Mapping[int | None, int]
    hidden_size: int | None = None
    seeds: int = 1
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _paper_size(task: str) -> Size:
    """The paper's own size."""
    printed = {row.depth for table in TABLES.values() for row, of, _ in table.cells() if of == task}
    return Size(figure_of(task).depths, {depth: depth for depth in printed if depth is not None})


#: Of a task by itself at the smoke scale, beside that of its figure.
_SMOKE_DEPTH = 2
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
        "wikipedia": Size((1, 2), {6: 2, None: 2}, 10, 1, _SMOKE_TEXT),
        "mnist": Size((1, 2), {3: 1, 5: 2, None: 2}, 10, 1, _SMOKE_ROWS),
        "pmnist": Size((1, 2), {3: 1, 5: 2, None: 2}, 10, 1, _SMOKE_ROWS),
    },
    "laptop": {
        "addition": Size((1, 4), {7: 4, 10: 4, None: 4}, 100, 2, {"length": 2, **_LAPTOP}),
        "memorization": Size(
            (1, 4, 7), {7: 7, 10: 7, None: 7}, None, 3, {"length": 10, "samples": 40_000}
        ),
        "wikipedia": Size((1, 2, 4), {6: 4, None: 4}, 64, 1, _LAPTOP_TEXT),
        "mnist": Size((1, 3), {3: 3, 5: 3, None: 3}, 50, 1, _LAPTOP_ROWS),
        "pmnist": Size((1, 3), {3: 3, 5: 3, None: 3}, 50, 1, _LAPTOP_ROWS),
    },
    "paper": {task: _paper_size(task) for panels in FIGURES.values() for task in panels.tasks},
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What a sweep is asked for.

    Args:
        scale: One of :data:`SCALES`.
        seeds: How many; ``None`` leaves it to the scale or the study.
        first_seed: The first of them.
        data: By task, the user's own data; for the other tasks it is downloaded or generated.
        variants: Those of the figures' panels.
    """

    scale: str
    seeds: int | None = None
    first_seed: int = 0
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    variants: tuple[str, ...] = PAPER_VARIANTS

    def seeds_or(self, usual: int) -> range:
        """The seeds asked for, ``usual`` of them where no number was."""
        return range(self.first_seed, self.first_seed + (self.seeds or usual))

    def run(
        self,
        source: str,
        task: str,
        variant: str,
        depth: int,
        seed: int,
        changes: Mapping[str, Any] = MappingProxyType({}),
        hidden_size: int | None = None,
    ) -> PlannedRun:
        """A run of one of the paper's figures or tables at this scale.

        Args:
            source: Where the paper has it, which decides M at the paper's scale.
            task: Its task.
            variant: Its variant.
            depth: L at this scale.
            seed: Its seed.
            changes: Settings in place of the others.
            hidden_size: M; ``None`` for the scale's or the paper's, and for another's network so
                many as make it about as large as ours.
        """
        settings = {**SIZES[self.scale][task].settings, **changes}
        config = as_printed(task).for_variant(variant).replace(**settings)
        config = config.replace(depth=VARIANTS[variant].settings.get("depth", depth))
        width = hidden_size or self._width(source, config, depth)
        config = config.replace(hidden_size=width, seed=seed, data=self.data.get(task))
        # Of the paper's variants a scale has one M; others may have several, or a task's own.
        way = () if variant in PAPER_VARIANTS else ("hidden_size",)
        return PlannedRun.of(config, way=way)

    def _width(self, source: str, config: TrainingConfig, depth: int) -> int:
        """M: the scale's or the paper's; where neither has one, for as many parameters as ours."""
        task, variant = config.task, config.variant
        sizes = experiment(source, task).hidden_sizes
        scaled = SIZES[self.scale][task].hidden_size
        if variant not in RIVALS and (known := scaled or sizes.get(variant)):
            return known
        symbols = symbols_of(task, config.length)
        ours = parameter_count(BEST_VARIANT, symbols, scaled or sizes[BEST_VARIANT], depth)
        return equal_width(variant, symbols, config.depth, ours)


def departures(target: str, request: Request, shown: Collection[str] = tuple(TASKS)) -> list[str]:
    """How the runs of each task that is ``shown`` differ from the paper's; nothing if not."""
    if target == EACH_TASK:
        return []  # the table has each network
    if target in STUDIES:
        study = STUDIES[target]
        return list(filter(None, [_departure(study.task, study.sizes[request.scale])]))
    panels = FIGURES.get(target) or Panels("", tuple(TABLES[target].rows[0].cells))
    lines = []
    for task in filter(shown.__contains__, panels.tasks):
        size = SIZES[request.scale][task]
        width = {} if size.hidden_size is None else {"hidden_size": size.hidden_size}
        line = _departure(task, {**width, **size.settings, **panels.changes})
        if one_width(task, request):
            line += " M is the same in all variants, where the paper fixes the parameter count."
        if width and (target in TABLES or RIVALS.keys() & set(request.variants)):
            line += " Others' networks have as many parameters as the paper's best."
        lines.append(line)
    return list(filter(None, lines))


def one_width(task: str, request: Request) -> bool:
    """Whether the variants share one M where the paper's do not."""
    printed = set(figure_of(task).hidden_sizes.values())
    scaled = SIZES[request.scale][task].hidden_size is not None
    return scaled and len(printed) > 1 and not RIVALS.keys() & set(request.variants)


def _departure(task: str, settings: Mapping[str, Any]) -> str:
    """The settings that are not the paper's, as a sentence; empty where all are."""
    paper = dataclasses.asdict(as_printed(task))
    changed = [
        f"{name.replace('_', ' ')} {_as_written(value)}"
        for name, value in settings.items()
        if value != paper[name] and name not in ("variant", "depth")
    ]
    if not changed:
        return ""
    return f"{task} is trained with {', '.join(changed)} in place of the paper's."


def _as_written(value: Any) -> str:
    """A setting's value as a person writes it."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else f"{value:,}"


def table_runs(target: str, request: Request) -> dict[tuple[str, str], list[PlannedRun]]:
    """Runs for the rows of a table, by task and the model's printed name, a run a seed."""
    table = TABLES[target]
    found: dict[tuple[str, str], list[PlannedRun]] = {}
    for row, task, _ in table.cells():
        depth, width = SIZES[request.scale][task].of_table.get(row.depth), None
        if request.scale == "paper" and task in row.sizes:
            width, depth = row.sizes[task]
        if row.variant is None or depth is None:
            continue
        entry = any(table.source == e.source and task in e.tasks for e in EXPERIMENTS)
        source = table.source if entry else figure_of(task).source
        found[task, row.model] = [
            request.run(source, task, row.variant, depth, seed, hidden_size=width)
            for seed in request.seeds_or(SIZES[request.scale][task].seeds)
        ]
    return found


def figure_runs(target: str, request: Request) -> list[PlannedRun]:
    """Runs of a figure's panels: every seed, depth, task and variant, cheap ones first."""
    source, tasks, changes = FIGURES[target]
    points = sorted(
        (seed, depth, number)
        for number, task in enumerate(tasks)
        for depth in SIZES[request.scale][task].depths
        for seed in request.seeds_or(SIZES[request.scale][task].seeds)
    )

    def beside(variant: str, depth: int, task: str) -> int:
        """The depth of ours that tells a network's width; a network of one depth stands once."""
        fixed = "depth" in VARIANTS[variant].settings
        return max(SIZES[request.scale][task].depths) if fixed else depth

    runs = [
        request.run(
            source, task := tasks[number], variant, beside(variant, depth, task), seed, changes
        )
        for seed, depth, number in points
        for variant in request.variants
    ]
    return list(dict.fromkeys(runs))


def study_runs(target: str, request: Request) -> dict[str, list[list[PlannedRun]]]:
    """Runs of a study, by panel: for each way a run a seed."""
    study = STUDIES[target]
    size = as_printed(study.task).replace(**study.sizes[request.scale])
    size = size.replace(data=request.data.get(study.task))
    seeds = request.seeds_or(1 if request.scale == "smoke" else study.seeds)

    def of_way(way: Way) -> list[PlannedRun]:
        config = size.replace(**_at_scale(way, size, request.scale))
        return [PlannedRun.of(config.replace(seed=seed), target, way) for seed in seeds]

    return {panel: [of_way(way) for way in ways] for panel, ways in study.panels.items()}


def task_runs(request: Request) -> list[PlannedRun]:
    """Each task with its own settings for a laptop or for the paper's size."""
    runs = []
    for name, task in TASKS.items():
        config = task.paper() if request.scale == "paper" else task.quick()
        if request.scale == "smoke":
            size = SIZES["smoke"].get(name, Size((), {}, 10, 1, _SMOKE))
            tiny = {"depth": _SMOKE_DEPTH, "hidden_size": size.hidden_size, **size.settings}
            config = config.replace(**tiny)
        data = request.data.get(name)
        runs += [PlannedRun.of(config.replace(seed=n, data=data)) for n in request.seeds_or(1)]
    return runs


def _at_scale(way: Mapping[str, Any], size: TrainingConfig, scale: str) -> dict[str, Any]:
    """A way's settings; at the smoke scale sizes and budget are the study's."""
    if scale != "smoke":
        return dict(way)
    found = {k: v for k, v in way.items() if k not in ("samples", "hidden_size")}
    return found | ({"depth": min(way["depth"], size.depth)} if "depth" in way else {})


def planned_runs(target: str, request: Request) -> list[PlannedRun]:
    """All runs of a target, each once."""
    if target == EACH_TASK:
        runs = task_runs(request)
    elif target in TABLES:
        runs = [run for runs in table_runs(target, request).values() for run in runs]
    elif target in FIGURES:
        runs = figure_runs(target, request)
    else:
        panels = study_runs(target, request).values()
        runs = [run for ways in panels for seeds in ways for run in seeds]
        runs.sort(key=lambda run: run.config.seed)
    return list(dict.fromkeys(runs))

"""What a target comes to: tables of runs beside what the paper prints."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from benchmarking.tables import Table
from tqdm import tqdm

from experiments.paper import PRINTED_POINTS, TABLES
from experiments.planned import PlannedRun
from experiments.plans import (
    EACH_TASK,
    FIGURES,
    Request,
    figure_runs,
    one_width,
    study_runs,
    table_runs,
    task_runs,
)
from experiments.results import RunResult
from experiments.studies import STUDIES
from mlx_tlstm import VARIANTS
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.tasks.generated import GeneratedTask
from mlx_tlstm.visualize.curves import METRICS

#: Results by the name of a run's folder; ``None`` where it was not run.
Results = Mapping[str, RunResult | None]
Row = dict[str, str]

#: Samples until so many of the answers were right, by column.
SOLVED = {"> 99 % after": "to_99", "100 % after": "to_100"}
_LENGTHS = {
    "addition": "{} digits",
    "memorization": "{} symbols",
    "wikipedia": "chunks of {} bytes",
    "mnist": "{} steps",
    "pmnist": "{} steps",
}


def target_tables(target: str, request: Request, results: Results) -> list[Table]:
    """A target's tables, that with a row a run as the last."""
    if target == EACH_TASK:
        return [task_table(request, results)]
    if target in TABLES:
        return [printed_table(target, request, results)]
    if target in FIGURES:
        return [*depth_tables(target, request, results), figure_table(target, request, results)]
    return study_tables(target, request, results)


def printed_table(target: str, request: Request, results: Results) -> Table:
    """One of the paper's tables, its rows as printed, ours filled in where the paper's own are."""
    printed, runs = TABLES[target], table_runs(target, request)
    tasks = list(printed.rows[0].cells)
    others = [f"paper, {quantity}" for quantity in printed.quantities[1:]]
    rows = []
    for row, task, cells in printed.cells():
        start = {"model": row.model, "trained": row.kind, "task": task}
        start |= zip(others, cells[1:], strict=True)
        for run in runs.get((task, row.model), [None]):
            size = result = None
            if run is not None:
                size = f"{_network(run.config, depth_last=True)}, seed {run.config.seed}"
                result = results[run.name]
            cells_of_run = _run_cells(request, size, result, _solved(tasks), cells[0], _test_text)
            rows.append(start | cells_of_run)
    return Table(f"{printed.source}: {printed.title}", rows)


def figure_table(target: str, request: Request, results: Results) -> Table:
    """The runs of a figure's panels, by task, variant, depth and seed."""
    source, tasks, changes = FIGURES[target]
    rows = []

    def place(run: PlannedRun) -> tuple[int, ...]:
        config = run.config
        variant = request.variants.index(config.variant)
        return (tasks.index(config.task), variant, config.depth, config.seed)

    begun = _by_task(target, request, results)
    for run in sorted((run for runs in begun.values() for run in runs), key=place):
        config = run.config
        point = (config.task, config.variant, config.depth)
        printed = PRINTED_POINTS.get(point, "") if request.scale == "paper" else ""
        start = dict(zip(("task", "variant", "depth"), map(str, point), strict=True))
        size = size_text(config)
        if one_width(config.task, request):
            size += " in all variants"
        cells = _run_cells(request, size, results[run.name], _solved(tasks), printed)
        rows.append(start | {"seed": str(config.seed)} | cells)
    way = f", {way_text(changes)}" if changes else ""
    return Table(f"{source}: performance of different configurations{way}", rows)


def study_tables(target: str, request: Request, results: Results) -> list[Table]:
    """A study's ways, their seeds side by side, and a row a run; once any has begun, only those."""
    study = STUDIES[target]
    summary, rows, begun = [], {}, {}
    for panel, ways in zip(study.panels.items(), study_runs(target, request).values(), strict=True):
        for way, runs in zip(panel[1], ways, strict=True):
            start = {"comparison": panel[0], "way": way_text(way)}
            found = [results[run.name] for run in runs]
            summary.append(start | _over_seeds(found, runs[0].config))
            for run, result in zip(runs, found, strict=True):
                size = _network(run.config, depth_last=True)
                cells = _run_cells(request, size, result, _solved([study.task]), None)
                # By name, since panels have ways in common.
                row = {"way": start["way"], "seed": str(run.config.seed)} | cells
                (rows if result is None else begun)[run.name] = row
    return [
        Table(f"{study.title}, {request.scale} scale", summary),
        Table(f"{study.title}, run by run", list((begun or rows).values())),
    ]


def task_table(request: Request, results: Results) -> Table:
    """Each task by itself."""
    rows = []
    for run in task_runs(request):
        config, result = run.config, results[run.name]
        row = {"task": config.task, "network": _noted(_network(config), result)}
        best = test = samples = time = ""
        if result is not None:
            best = "" if result.best is None else _best_text(result, with_state=False)
            test = result.state if result.test is None else value_text(result, result.test)
            samples, time = f"{result.samples:,}", tqdm.format_interval(result.seconds)
        row |= {"best": best, "test": test, **_solved_cells(result, SOLVED)}
        name = "" if result is None else result.name
        rows.append(row | {"samples": samples, "time": time, "run folder": name})
    return Table("Training on the paper's tasks", rows)


def way_text(way: Mapping[str, Any]) -> str:
    """Settings as words, as in ``forget_bias lag, beta2 0.99``."""
    words = [f"{k} {v if isinstance(v, str) else f'{v:g}'}" for k, v in way.items()]
    return ", ".join(words) or "the paper's"


def _over_seeds(found: Sequence[RunResult | None], config: TrainingConfig) -> Row:
    """One way's runs: how many are settled, samples to 99 and 100 %, and the best metric.

    A run that did not get there counts as more than its budget, in the median too; one that is not
    settled is a dash, and counts for nothing.
    """
    runs = [result if result is not None and result.settled else None for result in found]
    row = {"seeds": f"{len(runs) - runs.count(None)} of {len(runs)}"}
    for column in _solved([config.task]):
        counts = [run and (getattr(run, SOLVED[column]) or math.inf) for run in runs]
        row[f"{column}, median (each seed)"] = _median_count(counts, config.samples)
    best = ["–" if run is None or run.best is None else value_text(run, run.best) for run in runs]
    return row | {"best evaluation": ", ".join(best) if any(runs) else ""}


def _median_count(counts: Sequence[float | None], cap: int | None) -> str:
    """The median of sample counts and each of them; what is infinite is more than ``cap``."""
    known = [count for count in counts if count is not None]
    if not known:
        return ""

    def text(count: float | None) -> str:
        if count is None:
            return "–"
        if math.isinf(count):
            return "not reached" if cap is None else f"> {cap:,}"
        return f"{count:,.0f}"

    return f"{text(statistics.median(known))} ({', '.join(map(text, counts))})"


def depth_tables(target: str, request: Request, results: Results) -> list[Table]:
    """The figure as numbers: for each task, and each of its quantities, variants over depths.

    Runs that have neither ended nor diverged are left out.
    """
    tables = []
    for task, runs in _by_task(target, request, results).items():
        points: dict[tuple[str, int], list[RunResult]] = {
            (variant, depth): []
            for variant in request.variants
            for depth in sorted({run.config.depth for run in runs})
        }
        for result in settled(runs, results):
            points[result.config.variant, result.config.depth].append(result)
        size = size_text(*(run.config for run in runs))
        for quantity, text in _quantities(task).items():
            rows: dict[str, Row] = {}
            for (variant, depth), found in points.items():
                row = rows.setdefault(variant, {"variant": variant})
                row[f"L={depth}"] = text(found) if found else ""
            title = f"{task}, {request.scale} scale ({size}): {quantity}"
            tables.append(Table(title, list(rows.values())))
    return tables


def tasks_shown(target: str, request: Request, results: Results) -> Collection[str]:
    """Tasks of which a target's tables have rows; of a figure those that have begun."""
    if target in FIGURES:
        return _by_task(target, request, results)
    return TABLES[target].rows[0].cells if target in TABLES else TASKS


def _by_task(target: str, request: Request, results: Results) -> dict[str, list[PlannedRun]]:
    """A figure's runs by task; below the paper's scale of tasks that have begun, once any has."""
    tasks: dict[str, list[PlannedRun]] = {task: [] for task in FIGURES[target].tasks}
    for run in figure_runs(target, request):
        tasks[run.config.task].append(run)
    begun = {
        task: runs
        for task, runs in tasks.items()
        if any(results[run.name] is not None for run in runs)
    }
    return tasks if request.scale == "paper" else begun or tasks


def _quantities(task: str) -> dict[str, Callable[[Sequence[RunResult]], str]]:
    """By name, what makes a cell of the results of one configuration's seeds."""
    label, scale = METRICS[TASKS[task].metric]

    def best(results: Sequence[RunResult]) -> str:
        values = [scale * result.best for result in results]
        digits = 1 if scale == 100 else 3
        median, low, high = (
            f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))
        )
        span = "" if low == high else f" ({low} to {high})"
        return median + span + _leak(results[0].config)

    def samples(results: Sequence[RunResult]) -> str:
        counts = [result.to_100 for result in results if result.to_100 is not None]
        if not counts:
            return "not reached"
        part = "" if len(counts) == len(results) else f" ({len(counts)} of {len(results)} seeds)"
        return f"{statistics.median(counts):,.0f}{part}"

    found = {f"best {TASKS[task].monitor} {label}, median over seeds (range)": best}
    if _solved([task]):
        found["samples until 100 % were right, median over seeds"] = samples
    return found


def settled(runs: Sequence[PlannedRun], results: Results) -> list[RunResult]:
    """Results of the runs that have ended or diverged, with an evaluation."""
    found = [results[run.name] for run in runs]
    return [r for r in found if r is not None and r.settled and r.best is not None]


def size_text(*configs: TrainingConfig) -> str:
    """Length and M of a task's runs, as in ``3 symbols, M=50``; the length is the same in all."""
    sizes = dict.fromkeys(str(config.hidden_size) for config in configs)
    length = _LENGTHS.get(configs[0].task, "length {}").format(configs[0].length)
    one = configs[0].length == 1
    return f"{length.removesuffix('s') if one else length}, M={', '.join(sizes)}"


def _network(config: TrainingConfig, depth_last: bool = False) -> str:
    depth, size = f"L={config.depth}", size_text(config)
    return ", ".join((config.variant, *((size, depth) if depth_last else (depth, size))))


def value_text(result: RunResult, value: float) -> str:
    """A value of the run's metric, with a warning where it is no measure of a language model."""
    if result.metric == "accuracy":
        return f"{100 * value:.2f} %"
    return f"{value:.3f}{_leak(result.config)}"


def _leak(config: TrainingConfig) -> str:
    return " (not causal)" if leaks(config) else ""


def leaks(config: TrainingConfig) -> bool:
    """Whether later text reaches a language model's predictions: its figure measures nothing."""
    causal = VARIANTS[config.variant].is_causal(config.depth)
    return TASKS[config.task].metric == "bpc" and not causal


def _test_text(result: RunResult) -> str:
    return _best_text(result) if result.test is None else value_text(result, result.test)


def _best_text(result: RunResult, with_state: bool = True) -> str:
    words = [] if result.best is None else [f"{value_text(result, result.best)} ({result.split})"]
    return ", ".join(words + ([result.state] if with_state and result.state != "ended" else []))


def _run_cells(
    request: Request,
    size: str | None,
    result: RunResult | None,
    solved: Iterable[str],
    printed: str | None,
    text: Callable[[RunResult], str] = _best_text,
) -> Row:
    """The columns of a run, empty where it was not run.

    Beside them is what the paper prints; ``None`` for what is no experiment of the paper's.
    """
    sized, found = "size", "best evaluation"
    if printed is not None:
        sized, found = "our size", "ours"
        found += "" if request.scale == "paper" else f", {request.scale} scale"
    row = {sized: _noted(size or "", result), **_solved_cells(result, solved)}
    row |= {} if printed is None else {"paper": printed}
    if result is None:
        return row | dict.fromkeys((found, "samples", "time", "run folder"), "")
    time = tqdm.format_interval(result.seconds)
    row |= {found: text(result), "samples": f"{result.samples:,}", "time": time}
    return row | {"run folder": result.name}


def _solved(tasks: Sequence[str]) -> Iterable[str]:
    """The columns of :data:`SOLVED`, where all tasks have them."""
    return SOLVED if all(issubclass(TASKS[task], GeneratedTask) for task in tasks) else ()


def _solved_cells(result: RunResult | None, columns: Iterable[str]) -> Row:
    counts = {column: getattr(result, SOLVED[column], None) for column in columns}
    return {column: "" if n is None else f"{n:,}" for column, n in counts.items()}


def _noted(size: str, result: RunResult | None) -> str:
    return f"{size}, {result.note}" if result is not None and result.note else size

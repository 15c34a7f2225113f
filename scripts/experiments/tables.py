"""Tables of runs: ours beside what the paper prints."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarking.report import Table
from tqdm import tqdm

from experiments.paper import PAPER_VARIANTS, PRINTED_POINTS, TABLES
from experiments.planned import PlannedRun
from experiments.plans import FIGURES, Request, figure_runs, one_width, study_runs, table_runs
from experiments.results import RunResult
from experiments.studies import STUDIES
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.tasks.generated import GeneratedTask
from mlx_tlstm.training.progress import causality_note
from mlx_tlstm.visualize.curves import METRICS

#: Results by the name of a run's folder; ``None`` where it was not run.
Results = Mapping[str, RunResult | None]

SOLVED_COLUMNS = ("> 99 % after", "100 % after")
_LENGTHS = {
    "addition": "{} digits",
    "memorization": "{} symbols",
    "wikipedia": "chunks of {} bytes",
    "mnist": "{} steps",
    "pmnist": "{} steps",
}


def printed_table(target: str, request: Request, results: Results) -> Table:
    """One of the paper's tables, its rows as printed, ours filled in where the paper's own are."""
    printed, runs = TABLES[target], table_runs(target, request)
    tasks = list(printed.rows[0].cells)
    solved = SOLVED_COLUMNS if _generated(tasks) else ()
    others = tuple(f"paper, {quantity}" for quantity in printed.quantities[1:])
    rows: list[tuple[str, ...]] = []
    for row, task, cells in printed.cells():
        for run in runs.get((task, row.model), [None]):
            start = (row.model, task, *cells[1:])
            if run is None:
                rows.append((*start, "", *[""] * len(solved), cells[0], *[""] * 4))
                continue
            result = results[run.name]
            config = run.config
            network = f"{config.variant}, {size_text(config)}, L={config.depth}"
            ending = _ending(result, cells[0], _test_text)
            size = _noted(f"{network}, seed {config.seed}", result)
            rows.append((*start, size, *solved_cells(result, solved), *ending))
    header = ("model", "task", *others, "our size", *solved, *_ending_header(request))
    return Table(f"{printed.source}: {printed.title}", header, rows, {})


def figure_table(target: str, request: Request, results: Results) -> Table:
    """The runs of a figure's panels, by task, variant, depth and seed."""
    source, tasks, changes = FIGURES[target]
    solved = SOLVED_COLUMNS if _generated(tasks) else ()
    runs = figure_runs(target, request)
    rows = []
    for run in sorted(runs, key=lambda run: _place(run.config, tasks)):
        config, result = run.config, results[run.name]
        point = (config.task, config.variant, config.depth)
        printed = PRINTED_POINTS.get(point, "") if request.scale == "paper" else ""
        start = (config.task, config.variant, str(config.depth), str(config.seed))
        ending = _ending(result, printed, _best_text)
        same = " in all variants" if one_width(config.task, request) else ""
        size = _noted(size_text(config) + same, result)
        rows.append((*start, size, *solved_cells(result, solved), *ending))
    header = ("task", "variant", "depth", "seed", "our size", *solved, *_ending_header(request))
    way = f", {way_text(changes)}" if changes else ""
    return Table(f"{source}: performance of different configurations{way}", header, rows, {})


def study_tables(target: str, request: Request, results: Results) -> list[Table]:
    """A study's ways, their seeds side by side, and a row a run."""
    study = STUDIES[target]
    summary, rows = [], []
    for panel, ways in zip(study.panels.items(), study_runs(target, request).values(), strict=True):
        for way, runs in zip(panel[1], ways, strict=True):
            found = [results[run.name] for run in runs]
            words = way_text(way)
            summary.append((panel[0], words, *_over_seeds(found, runs[0].config)))
            for run, result in zip(runs, found, strict=True):
                config = run.config
                size = f"{config.variant}, {size_text(config)}, L={config.depth}"
                start = (panel[0], words, str(config.seed), size)
                rows.append((*start, *solved_cells(result), *_ending(result, "", _best_text)))
    columns = tuple(f"{name}, median (each seed)" for name in SOLVED_COLUMNS)
    header = ("comparison", "way", "seeds", *columns, "best at the end")
    every = ("comparison", "way", "seed", "our size", *SOLVED_COLUMNS, *_ending_header(request))
    return [
        Table(f"{study.title}, {request.scale} scale", header, summary, {}),
        Table(study.title, every, rows, {}),
    ]


def way_text(way: Mapping[str, Any]) -> str:
    """Settings as words, as in ``forget_bias lag, beta2 0.99``."""
    words = [f"{k} {v if isinstance(v, str) else f'{v:g}'}" for k, v in way.items()]
    return ", ".join(words) or "the paper's"


def _over_seeds(found: Sequence[RunResult | None], config: TrainingConfig) -> tuple[str, ...]:
    """Of one way's settled runs: how many, samples to 99 and 100 %, and the best metric.

    A run that did not get there counts as more than its budget, in the median too.
    """
    ended = [result for result in found if result is not None and result.settled]
    cells = [f"{len(ended)} of {len(found)}"]
    for solved in ("to_99", "to_100"):
        counts = [getattr(result, solved) for result in ended]
        cells.append(_median_count(counts, config.samples))
    best = [value_text(result, result.best) for result in ended if result.best is not None]
    return (*cells, ", ".join(best))


def _median_count(counts: Sequence[int | None], cap: int | None) -> str:
    """The median of sample counts and each of them; ``None`` is more than ``cap``."""
    if not counts:
        return ""

    def text(count: float) -> str:
        return f"> {cap:,}" if math.isinf(count) else f"{count:,.0f}"

    values = [math.inf if count is None else count for count in counts]
    return f"{text(statistics.median(values))} ({', '.join(map(text, values))})"


def depth_tables(target: str, request: Request, results: Results) -> list[Table]:
    """The figure as numbers: for each task, and each of its quantities, variants over depths.

    Runs that have neither ended nor diverged are left out.
    """
    tables = []
    for task in FIGURES[target].tasks:
        runs = [run for run in figure_runs(target, request) if run.config.task == task]
        depths = sorted({run.config.depth for run in runs})
        points: dict[tuple[str, int], list[RunResult]] = {}
        for result in settled(runs, results):
            points.setdefault((result.config.variant, result.config.depth), []).append(result)
        size = size_text(*(run.config for run in runs))
        for quantity, text in _quantities(task).items():
            rows = [
                (variant, *(text(points.get((variant, depth), [])) for depth in depths))
                for variant in PAPER_VARIANTS
            ]
            header = ("variant", *(f"L={depth}" for depth in depths))
            title = f"{task}, {request.scale} scale ({size}): {quantity}"
            tables.append(Table(title, header, rows, {}))
    return tables


def settled(runs: Sequence[PlannedRun], results: Results) -> list[RunResult]:
    """Results of the runs that have ended or diverged, with an evaluation."""
    found = [results[run.name] for run in runs]
    return [r for r in found if r is not None and r.settled and r.best is not None]


def size_text(*configs: TrainingConfig) -> str:
    """Length and M of a task's runs, as in ``3 symbols, M=50``; the length is the same in all."""
    sizes = dict.fromkeys(str(config.hidden_size) for config in configs)
    return f"{_LENGTHS[configs[0].task].format(configs[0].length)}, M={', '.join(sizes)}"


def value_text(result: RunResult, value: float) -> str:
    """A value of the run's metric, with a warning where it is no measure of a language model."""
    if result.metric == "accuracy":
        return f"{100 * value:.2f} %"
    return f"{value:.3f}{_leak(result.config)}"


def _leak(config: TrainingConfig) -> str:
    return " (not causal)" if causality_note(config, TASKS[config.task]) else ""


def _test_text(result: RunResult) -> str:
    if result.test is not None:
        return value_text(result, result.test)
    return _best_text(result)


def _best_text(result: RunResult) -> str:
    words = [] if result.best is None else [f"{value_text(result, result.best)} ({result.split})"]
    return ", ".join(words + ([] if result.state == "ended" else [result.state]))


def _ending_header(request: Request) -> tuple[str, ...]:
    ours = "ours" if request.scale == "paper" else f"ours, {request.scale} scale"
    return ("paper", ours, "samples", "time", "run folder")


def _ending(
    result: RunResult | None, printed: str, text: Callable[[RunResult], str]
) -> tuple[str, ...]:
    if result is None:
        return (printed, "", "", "", "")
    time = tqdm.format_interval(result.seconds)
    return (printed, text(result), f"{result.samples:,}", time, result.name)


def solved_cells(
    result: RunResult | None, columns: Sequence[str] = SOLVED_COLUMNS
) -> tuple[str, ...]:
    """Samples until more than 99 %, and all, of the answers were right; empty where never."""
    counts = (None, None) if result is None else (result.to_99, result.to_100)
    return tuple("" if n is None else f"{n:,}" for _, n in zip(columns, counts, strict=False))


def _noted(size: str, result: RunResult | None) -> str:
    return f"{size}, {result.note}" if result is not None and result.note else size


def _generated(tasks: Sequence[str]) -> bool:
    return all(issubclass(TASKS[task], GeneratedTask) for task in tasks)


def _place(config: TrainingConfig, tasks: Sequence[str]) -> tuple[int, ...]:
    variant = PAPER_VARIANTS.index(config.variant)
    return (tasks.index(config.task), variant, config.depth, config.seed)


def _quantities(task: str) -> dict[str, Callable[[Sequence[RunResult]], str]]:
    """By name, what makes a cell of the results of one configuration's seeds."""
    label, scale = METRICS[TASKS[task].metric]

    def best(results: Sequence[RunResult]) -> str:
        values = [scale * result.best for result in results]
        digits = 1 if scale == 100 else 3
        if not values:
            return ""
        median, low, high = (
            f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))
        )
        span = "" if low == high else f" ({low} to {high})"
        return median + span + _leak(results[0].config)

    def samples(results: Sequence[RunResult]) -> str:
        counts = [result.to_100 for result in results if result.to_100 is not None]
        if not results:
            return ""
        if not counts:
            return "not reached"
        part = "" if len(counts) == len(results) else f" ({len(counts)} of {len(results)} seeds)"
        return f"{statistics.median(counts):,.0f}{part}"

    found = {f"best {TASKS[task].monitor} {label}, median over seeds (range)": best}
    if _generated([task]):
        found["samples until 100 % were right, median over seeds"] = samples
    return found

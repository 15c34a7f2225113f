"""The performance panels of Fig. 3 to 5, drawn from training runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from benchmarking.task_passes import experiment_of
from matplotlib.axes import Axes

from experiments.results import RunResult
from experiments.tables import size_text
from mlx_tlstm import VARIANTS
from mlx_tlstm.checks import require
from mlx_tlstm.models.trained import is_run
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.progress import causality_note
from mlx_tlstm.visualize import draw_by_depth
from mlx_tlstm.visualize.curves import METRICS, shown_settings


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Run folders: each path that is one, and else those in it, by name.

    Raises:
        ValueError: A path is no run and holds none.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        children = sorted(path.iterdir()) if path.is_dir() else []
        runs = [run for run in (path, *children) if is_run(run)]
        require(bool(runs), "figures", "path", "a run's folder or a folder of runs", str(path))
        found |= {run.resolve(): run for run in runs}
    return list(found.values())


def comparable(results: Sequence[RunResult]) -> list[RunResult]:
    """Of runs on one task those that differ in variant, depth and seed only, as many as there are.

    M may differ between variants where the paper's does.

    Raises:
        ValueError: Two settings have equally many runs, or a variant has two M.
    """
    groups: dict[Hashable, list[RunResult]] = {}
    for result in results:
        groups.setdefault(_common_settings(result), []).append(result)
    largest, *others = sorted(groups.values(), key=len, reverse=True)
    if others and len(others[0]) == len(largest):
        examples = " and ".join(repr(group[0].name) for group in (largest, others[0]))
        raise ValueError(
            "[figures] 'paths' must be of runs that differ in variant, depth and seed only but "
            f"{examples} differ in more; name the runs to draw"
        )
    hidden_sizes: dict[str, set[int]] = {}
    for result in largest:
        hidden_sizes.setdefault(result.config.variant, set()).add(result.config.hidden_size)
    for variant, sizes in hidden_sizes.items():
        expected = f"of runs with one hidden_size for {variant}"
        require(len(sizes) == 1, "figures", "paths", expected, sorted(sizes))
    return largest


def _common_settings(result: RunResult) -> Hashable:
    config = result.config
    values = shown_settings(config) | {"samples": config.samples, "epochs": config.epochs}
    free = {"variant", "depth"}
    if len(set(experiment_of(config.task).hidden_sizes.values())) > 1:
        free.add("hidden_size")
    return tuple((name, value) for name, value in values.items() if name not in free)


def draw_performance_panel(results: Sequence[RunResult], axes: Axes) -> None:
    """The best value of the task's metric over the depth, a line a variant.

    It is taken on the split that training is watched on: the test samples of the algorithmic
    tasks, which the paper reports, and elsewhere the validation split. A language model under
    layer normalisation is marked: it sees what it predicts.

    Args:
        results: Runs on one task, each with an evaluation.
        axes: Where to draw.

    Raises:
        ValueError: There is no run, or one has no evaluation.
    """
    first, task = results[0], results[0].config.task
    label, scale = METRICS[first.metric]
    points: dict[str, dict[int, list[float]]] = {}
    for result in results:
        require(result.best is not None, "figures", "runs", "evaluated", result.name)
        by_depth = points.setdefault(result.config.variant, {})
        by_depth.setdefault(result.config.depth, []).append(scale * result.best)
    leaky = {
        result.config.variant for result in results if causality_note(result.config, TASKS[task])
    }
    labels = {variant: f"{variant} (not causal)" for variant in leaky}
    draw_by_depth(points, f"best {first.split} {label}", axes, labels)
    order = list(VARIANTS)
    configs = sorted((r.config for r in results), key=lambda config: order.index(config.variant))
    seeds = len({config.seed for config in configs})
    size = f"{size_text(*configs)}, {seeds} seed{'s' if seeds > 1 else ''}"
    axes.set_title(f"{task}, {size}", fontsize="medium")

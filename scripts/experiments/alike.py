"""Which runs of a folder can stand in one figure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from experiments.paper import figure_of
from experiments.results import RunResult
from mlx_tlstm.checks import require
from mlx_tlstm.models.trained import is_run
from mlx_tlstm.visualize.curves import shown_settings


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
    if len(set(figure_of(config.task).hidden_sizes.values())) > 1:
        free.add("hidden_size")
    return tuple((name, value) for name, value in values.items() if name not in free)

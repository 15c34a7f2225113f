"""Drawing of learning curves: the metrics of runs over their training samples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlx_tlstm.checks import require, require_choice
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training.runs import RunFolder
from mlx_tlstm.visualize.canvas import canvas, legend_outside
from mlx_tlstm.visualize.styles import variant_style

#: Name and unit of each metric, and what its values are multiplied by.
METRICS = {
    "accuracy": ("accuracy (%)", 100),
    "sequence_accuracy": ("sequences right (%)", 100),
    "bpc": ("bits per character", 1),
    "loss": ("training loss (nats)", 1),
    "evaluation_loss": ("loss (nats)", 1),
    "gradient_norm": ("gradient norm", 1),
}
#: Metrics of training, which belong to no split.
_OF_TRAINING = ("loss", "gradient_norm")

#: Settings that a seed, a budget or a machine has, and that no label shows.
_UNSHOWN = frozenset(
    {
        "seed",
        "samples",
        "epochs",
        "eval_every",
        "accumulate",
        "recompute",
        "checkpoint_every",
        "checkpoint_seconds",
        "keep_checkpoints",
    }
)
_SYMBOLS = {"depth": "L", "hidden_size": "M", "kernel_size": "K"}
#: Settings that need no name beside their value.
_UNNAMED = ("task", "variant", "dtype")
#: What a title says of settings that all runs share.
_TITLE = ("variant", "depth", "hidden_size")
_MARKERS_A_LINE = 8


def shown_settings(config: TrainingConfig) -> dict[str, Any]:
    """The settings that tell runs apart, by name; of the path of data only the last part.

    Seeds, budgets, checkpoints and what changes no result are none.
    """
    values = config.without_folder()
    return {name: value for name, value in values.items() if name not in _UNSHOWN}


#: Settings that a legend names whole.
_WHOLE_LABELS = 6


def differing_settings(configs: Sequence[TrainingConfig]) -> list[str]:
    """Names of the :func:`shown_settings` that are not the same everywhere, in their order."""
    rows = [shown_settings(config) for config in configs]
    return [name for name in rows[0] if any(row[name] != rows[0][name] for row in rows)]


def draw_learning_curves(
    runs: Sequence[RunFolder | str | Path], metric: str | None = None, axes: Axes | None = None
) -> Figure:
    """Draw a metric over the training samples, a line for each run.

    Runs are labelled by the settings in which they differ; runs that differ only in their seeds
    look the same. Where several settings share a variant, the later ones are lighter. Where there
    are many and each has a variant of its own, the variant alone is the label.

    Args:
        runs: The runs, or paths of their folders. Their tasks may differ if these have the same
            metric.
        metric: One of :data:`METRICS`; ``None`` takes the task's own.
        axes: Where to draw; ``None`` makes a figure.

    Returns:
        The figure.

    Raises:
        ValueError: There are no runs, a folder holds none, a run has no evaluation yet or none
            with the metric, or the tasks have different metrics.
    """
    owner = "draw_learning_curves"
    one = (RunFolder, str, os.PathLike)
    given = [runs] if isinstance(runs, one) else runs
    require(isinstance(given, Iterable), owner, "runs", "RunFolders or paths of folders", given)
    given = list(given)
    require(len(given) > 0, owner, "runs", "at least one run", given)
    for run in given:
        require(isinstance(run, one), owner, "runs", "RunFolders or paths of folders", run)
    runs = [run if isinstance(run, RunFolder) else RunFolder.open(run) for run in given]
    if metric is None:
        metrics = sorted({TASKS[run.config.task].metric for run in runs})
        require(len(metrics) == 1, owner, "runs", "of tasks with one metric", metrics)
        [metric] = metrics
    require_choice(owner, "metric", metric, METRICS)
    label, scale = METRICS[metric]
    records = [run.read_metrics() for run in runs]
    for run, rows in zip(runs, records, strict=True):
        evaluated = bool(rows) and all(metric in row for row in rows)
        require(evaluated, owner, "runs", f"evaluated with {metric!r}", str(run.path))
    differing = differing_settings([run.config for run in runs])
    groups = _groups([run.config for run in runs], differing)
    named = {runs[members[0]].config.variant for members, _ in groups.values()}
    by_variant = len(groups) > _WHOLE_LABELS and len(named) == len(groups)
    figure, axes = canvas(owner, axes, (7.0, 4.0))
    unit, divisor = _sample_unit(max(rows[-1]["samples"] for rows in records))
    for setting, (members, style) in groups.items():
        label_parts = [runs[members[0]].config.variant] if by_variant else setting
        for number, member in enumerate(members):
            rows = records[member]
            axes.plot(
                [row["samples"] / divisor for row in rows],
                [scale * row[metric] for row in rows],
                **style,
                label="_" if number or not differing else ", ".join(label_parts),
                linewidth=1.4,
                markersize=5,
                markevery=max(1, len(rows) // _MARKERS_A_LINE),
            )
    axes.set_title(_title([run.config for run in runs], differing), fontsize="medium")
    axes.set_xlabel(f"training samples{unit}")
    axes.set_ylabel(label if metric in _OF_TRAINING else _of_split(label, records))
    axes.set_xlim(left=0)
    if metric == "gradient_norm":
        axes.set_yscale("log")
    elif scale == 100:
        axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    if differing:
        legend_outside(axes)
    return figure


def _groups(
    configs: Sequence[TrainingConfig], differing: Sequence[str]
) -> dict[tuple[str, ...], tuple[list[int], dict[str, Any]]]:
    """Numbers of the runs of each setting, by its label's parts, and the line's look."""
    members: dict[tuple[str, ...], list[int]] = {}
    for number, config in enumerate(configs):
        shown = shown_settings(config)
        setting = tuple(_setting_text(name, shown[name]) for name in differing)
        members.setdefault(setting, []).append(number)
    variants = [configs[numbers[0]].variant for numbers in members.values()]
    styles = (
        variant_style(variant, variants[:number].count(variant), variants.count(variant))
        for number, variant in enumerate(variants)
    )
    return dict(zip(members, zip(members.values(), styles, strict=True), strict=True))


def _setting_text(name: str, value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:g}"
    if name in _SYMBOLS:
        return f"{_SYMBOLS[name]}={value}"
    return str(value) if name in _UNNAMED else f"{name.replace('_', ' ')} {value}"


def _title(configs: Sequence[TrainingConfig], differing: Sequence[str]) -> str:
    first = configs[0]
    parts = [] if "task" in differing else [first.task]
    if parts and "length" not in differing:
        parts = [f"{first.task} {first.length}"]
    parts += [_setting_text(n, getattr(first, n)) for n in _TITLE if n not in differing]
    return ", ".join(parts)


def _sample_unit(most: int) -> tuple[str, int]:
    """What follows "training samples", and what the numbers are divided by."""
    if most >= 10_000_000:
        return " (millions)", 1_000_000
    return (" (thousands)", 1000) if most >= 10_000 else ("", 1)


def _of_split(label: str, records: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    splits = {row.get("split") for rows in records for row in rows}
    return f"{splits.pop()} {label}" if len(splits) == 1 and None not in splits else label

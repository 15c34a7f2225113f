"""Comparisons that are ours: one task and size, trained in several ways side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.paper import BEST_VARIANT, symbols_of
from experiments.widths import equal_width, parameter_count
from mlx_tlstm import VARIANTS
from mlx_tlstm.rivals import RIVALS

#: Settings in which a run departs from the study's size.
Way = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """One task, trained in several ways.

    Args:
        title: What the tables are called.
        task: Name of the task.
        sizes: By scale, settings in place of those of the task's paper settings.
        panels: By what a panel of the picture is about, the ways that it compares.
        seeds: How many, from 0.
    """

    title: str
    task: str
    sizes: Mapping[str, Way]
    panels: Mapping[str, tuple[Way, ...]]
    seeds: int = 3


_TINY = {
    "variant": "2d-tlstm+cn",
    "depth": 2,
    "hidden_size": 10,
    "length": 2,
    "batch_size": 10,
    "samples": 200,
    "eval_every": 100,
}
_LAG = {"forget_bias": "lag"}
#: The best of the grid on seeds 0-2, from which the other levers are moved one at a time.
_BEST = {"forget_bias": 4.0, "beta2": 0.99}
_L7 = {"depth": 7, "samples": 115_000}
_L10 = {"depth": 10, "samples": 60_000}
_2D = {"variant": "2d-tlstm+cn"}
_PLAIN = {"variant": "3d-tlstm"}
_FIVE_SYMBOLS = {"length": 5, "depth": 4}
_TEN_SYMBOLS = {"depth": 5, "length": 10, "samples": 30_000}
_DIGITS = (*({"length": number} for number in (1, 2, 3)), {"length": 4, "samples": 400_000})

#: What is compared at equal parameters: two of ours, the paper's stacked LSTM, and the rivals.
_ALIKE = (BEST_VARIANT, "2d-tlstm+cn", "slstm", *RIVALS)


def _alike(
    task: str,
    length: int,
    depth: int,
    hidden_size: int,
    lag: bool,
    networks: tuple[str, ...] = _ALIKE,
) -> tuple[Way, ...]:
    """``networks`` of no more parameters than the paper's best variant at this size.

    Those with layers have ``depth`` of them. With ``lag`` all forget gates start by the lag, which
    is the same knowledge of the task for all; else as the task or the network's own paper says.
    """
    symbols = symbols_of(task, length)
    parameters = parameter_count(BEST_VARIANT, symbols, hidden_size, depth)
    ways = []
    for name in networks:
        variant = VARIANTS[name]
        way = {"variant": name, "depth": depth, **variant.settings}
        if variant.has_forget_gate:
            way |= _LAG if lag else {}
        width = equal_width(name, symbols, way["depth"], parameters)
        ways.append({**way, "hidden_size": width})
    return tuple(ways)


def _rivals_study(task: str, settings: Way, ways: tuple[Way, ...], **smoke: Any) -> Study:
    parts = {"our networks and others', at equal parameters": ways}
    sizes = {"smoke": {**_TINY, **smoke}, "laptop": settings, "paper": {}}
    return Study(f"Others' networks beside ours, {task}", task, sizes, parts)


STUDIES = {
    "starts": Study(
        "Starting points, on memorization",
        "memorization",
        {
            "smoke": _TINY,
            "laptop": _TEN_SYMBOLS,
            "paper": {},
        },
        {
            "forget bias": ({}, _LAG, {"forget_bias": 4.0}),
            "forget bias, beta2 0.99": (
                {"beta2": 0.99},
                {**_LAG, "beta2": 0.99},
                {"forget_bias": 4.0, "beta2": 0.99},
            ),
            "clipping": (
                _BEST,
                {**_BEST, "clip_norm": 0.0},
                {**_BEST, "clip_norm": 0.0, "clip_value": 1.0},
            ),
            "one tensor axis": (_2D, {**_2D, **_BEST}),
            "no normalisation": (_PLAIN, {**_PLAIN, **_BEST}),
            "5 symbols, L = 4": (_FIVE_SYMBOLS, {**_FIVE_SYMBOLS, **_BEST}),
        },
    ),
    "symbols-20": Study(
        "20 symbols to memorize, the paper's size",
        "memorization",
        {"smoke": _TINY, "laptop": {}, "paper": {}},
        {"L = 7": (_L7, {**_L7, **_LAG}), "L = 10, by the lag": ({**_L10, **_LAG},)},
    ),
    "addition-digits": Study(
        "Addition, over the number of digits",
        "addition",
        {
            "smoke": _TINY,
            "laptop": {**_2D, "depth": 4, "hidden_size": 200, "samples": 200_000},
            "paper": {},
        },
        {"the paper's forget bias": _DIGITS, "by the lag": tuple(w | _LAG for w in _DIGITS)},
    ),
    "addition-15": Study(
        "Addition of 15 digits, the paper's size",
        "addition",
        {"smoke": _TINY, "laptop": {"samples": 300_000}, "paper": {}},
        {"L = 7": ({}, _LAG)},
    ),
    "axes-wikipedia": Study(
        "Two tensor axes and one at equal parameters, Wikipedia",
        "wikipedia",
        {
            "smoke": {**_TINY, "length": 10, "samples": 400, "epochs": None, "eval_every": 400},
            "laptop": {"batch_size": 32, "learning_rate": 2e-3, "epochs": 4, "eval_every": 54_800},
            "paper": {},
        },
        {"L = 2": _alike("wikipedia", 50, 2, 120, lag=False, networks=_ALIKE[:2])},
    ),
    "axes-mnist": Study(
        "Two tensor axes and one at equal parameters, MNIST pixel by pixel",
        "mnist",
        {
            "smoke": {**_TINY, "length": 28, "epochs": None},
            "laptop": {"epochs": 1, "eval_every": 12_500},
            "paper": {},
        },
        {"L = 3": _alike("mnist", 784, 3, 100, lag=False, networks=_ALIKE[:2])},
    ),
    "rivals-memorization": _rivals_study(
        "memorization",
        {"length": 10, "samples": 30_000},
        _alike("memorization", 10, 5, 100, lag=True),
    ),
    "rivals-addition": _rivals_study(
        "addition",
        {"length": 3, "samples": 60_000},
        _alike("addition", 3, 4, 100, lag=True),
    ),
    "rivals-mnist": _rivals_study(
        "mnist",
        {"length": 28, "epochs": 1, "eval_every": 10_000},
        _alike("mnist", 28, 3, 50, lag=False),
        length=14,
        epochs=None,
    ),
}

"""Comparisons that are ours: one task and size, trained in several ways side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

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
            "memory's start": (
                _BEST,
                {**_BEST, "memory_init": "shift"},
                {**_BEST, "memory_init": "hold"},
            ),
            "two axes": (_2D, {**_2D, **_BEST}),
            "no normalization": (_PLAIN, {**_PLAIN, **_BEST}),
            "5 symbols, L = 4": (_FIVE_SYMBOLS, {**_FIVE_SYMBOLS, **_BEST}),
        },
    ),
    "symbols-20": Study(
        "20 symbols to memorize, the paper's size",
        "memorization",
        {"smoke": _TINY, "laptop": {}, "paper": {}},
        {"L = 7": (_L7, {**_L7, **_LAG}), "L = 10": ({**_L10, **_LAG},)},
    ),
}

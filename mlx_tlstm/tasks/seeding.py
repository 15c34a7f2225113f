"""Random generators that are pure functions of what they are for."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Uses of randomness that must never share numbers."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2
    MODEL = 3


def random_generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """The generator number ``index`` (a step or an epoch) of a stream.

    A spawn key, not a longer seed: NumPy pads a seed with zeros and splits large integers, so
    ``default_rng([5])`` equals ``default_rng([5, 0])``; with a spawn key no two uses collide.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), index)))

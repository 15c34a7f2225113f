"""Builds layers beside their reference, with the same float32 numbers in both."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_map
from reference import LAYER, Specification, random_parameters

from mlx_tlstm import TLSTM, TRNN, VARIANTS, StackedLSTM
from mlx_tlstm.rivals import RIVALS

# Pairwise different, so that no transposed axis goes unseen.
BATCH, STEPS, INPUT, HIDDEN = 2, 5, 4, 7


#: Variants whose steps are this package's own, by name; tests/rivals has the others.
OUR_VARIANTS = {name: variant for name, variant in VARIANTS.items() if name not in RIVALS}


class GRU(nn.Module):
    """A cell of one's own: ``cell(x, h)`` gives the output and the state after it."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.from_input = nn.Linear(input_size, 3 * hidden_size)
        self.from_past = nn.Linear(hidden_size, 3 * hidden_size)

    def __call__(self, x, h):
        z, r, n = mx.split(self.from_input(x), 3, axis=-1)
        past_z, past_r, past_n = mx.split(self.from_past(h), 3, axis=-1)
        z, r = mx.sigmoid(z + past_z), mx.sigmoid(r + past_r)
        h = (1 - z) * mx.tanh(n + r * past_n) + z * h
        return h, h


def single(array: np.ndarray) -> np.ndarray:
    """Round to float32 and back, so that both sides start from the same numbers."""
    return array.astype(np.float32).astype(np.float64)


def to_mlx(arrays: dict[str, np.ndarray]) -> dict[str, mx.array]:
    return {name: mx.array(array.astype(np.float32)) for name, array in arrays.items()}


def build(kind: str, spec: Specification | int, seed: int = 0) -> tuple[Any, dict[str, np.ndarray]]:
    """A layer with random parameters, and those parameters for the reference.

    ``kind`` is "tlstm", "trnn" or "stacked"; ``spec`` is the depth for "stacked".
    """
    rng = np.random.default_rng(seed)
    if kind == "stacked":
        layer = StackedLSTM(INPUT, HIDDEN, spec)
        parameters = random_parameters(LAYER, INPUT, HIDDEN, rng)
    elif kind == "trnn":
        layer = TRNN(INPUT, HIDDEN, spec.tensor_size, spec.kernel_size)
        parameters = random_parameters(spec, INPUT, HIDDEN, rng, rnn=True)
    else:
        layer = TLSTM(
            INPUT,
            HIDDEN,
            spec.tensor_size,
            spec.kernel_size,
            memory_convolution=spec.memory_convolution,
            norm=spec.norm,
        )
        parameters = random_parameters(spec, INPUT, HIDDEN, rng)
    parameters = {name: single(array) for name, array in parameters.items()}
    layer.cell.load_weights(list(to_mlx(parameters).items()))
    return layer, parameters


def random_arrays(rng: np.random.Generator, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: single(rng.normal(size=shape)) for name, shape in shapes.items()}


def random_state(cell: Any, batch_size: int) -> Any:
    """A state of a cell in which nothing is zero."""
    state = cell.initial_state(batch_size)
    return type(state)(*(mx.random.normal(a.shape).astype(a.dtype) for a in state))


def moved(module: nn.Module) -> nn.Module:
    """The module with no parameter at the zeros and ones of new ones, which hide mistakes."""
    module.apply(lambda array: array + (0.1 * mx.random.normal(array.shape)).astype(array.dtype))
    return module


def plain_loop(step: Callable, state: Any, xs: Any) -> tuple[Any, Any]:
    """What ``scan(step, state, xs)`` gives, by a loop in Python."""
    ys = []
    for x in xs:
        state, y = step(state, x)
        ys.append(y)
    return state, tree_map(lambda *arrays: mx.stack(arrays), *ys)


def cost(run: Callable[[], object]) -> tuple[float, int]:
    """Processor seconds (of all threads), and bytes at the peak beside what is in use already."""
    gc.collect()
    mx.synchronize()  # what earlier tests still hold would come and go meanwhile
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    start = time.process_time()
    run()
    return time.process_time() - start, mx.get_peak_memory() - before


def peak_bytes(run: Callable[[], object]) -> int:
    mx.clear_cache()  # MLX takes larger buffers than it needs where it has some
    return cost(run)[1]

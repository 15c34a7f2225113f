"""What each kernel launch reads and writes, counted from its access pattern.

``bytes_moved`` counts every element that a launch asks the caches for, as often as it asks: a
convolution's tiles read their rows once for each column of tiles, and the memory kernels read each
neighbour once for each tap. ``bytes_least`` counts every element of every buffer once, what a
launch with perfect caches would move to and from memory. What all lanes of a simdgroup read
together counts once, and the shapes that MLX passes count nothing.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from mlx_tlstm.checking.chains import Problem
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels.convolution import FORWARD, INPUT_GRADIENT, STEPS, WEIGHT_GRADIENT
from mlx_tlstm.kernels.library import PACK
from mlx_tlstm.kernels.tiles import Tile

_FLOAT = 4  # bytes of what stays float32 whatever the weights' type


class Access(NamedTuple):
    """How a launch uses one buffer, in elements.

    Attributes:
        size: Elements of the buffer.
        bytes: Of an element.
        loads: Elements read, each as often as it is.
        stores: Elements written, likewise.
    """

    size: int
    bytes: int
    loads: int = 0
    stores: int = 0


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one launch does.

    Attributes:
        kernel: The kernel's name.
        buffers: Use of each buffer; the eight of a series in the weight gradient count as one.
    """

    kernel: str
    buffers: dict[str, Access]

    @property
    def bytes_moved(self) -> int:
        """Bytes asked for, caches or not."""
        return sum((a.loads + a.stores) * a.bytes for a in self.buffers.values())

    @property
    def bytes_least(self) -> int:
        """Bytes of all buffers once."""
        return sum(a.size * a.bytes for a in self.buffers.values())


def _inside(geometry: Geometry) -> int:
    """Pairs of a location and a tap that reads a location."""
    return math.prod(
        sum(0 <= p + k - K // 2 < P for p in range(P) for k in range(K))
        for P, K in zip(geometry.tensor_size, geometry.kernel_size, strict=True)
    )


def _at_corner(geometry: Geometry) -> int:
    """Pairs of a location and a tap that reads the projected input."""
    return math.prod(
        sum(p + k - K // 2 == -1 for p in range(P) for k in range(K))
        for P, K in zip(geometry.tensor_size, geometry.kernel_size, strict=True)
    )


def convolution_forward(problem: Problem, tile: Tile) -> Cost:
    """Cost of a launch of ``convolution_forward``."""
    B, M, O, rows = problem.batch_size, problem.hidden_size, problem.channels, problem.rows
    geometry, itemsize = problem.geometry, problem.dtype.size
    depth = geometry.taps * M
    across, down, _ = tile.groups(rows, O)
    return Cost(
        FORWARD.name,
        {
            "hidden": Access(rows * M, itemsize, loads=down * B * _inside(geometry) * M),
            "projected": Access(B * M, itemsize, loads=down * B * _at_corner(geometry) * M),
            "weight": Access(O * depth, itemsize, loads=across * O * depth),
            "bias": Access(O, itemsize, loads=rows * O),
            "activation": Access(rows * O, itemsize, stores=rows * O),
        },
    )


def convolution_input_gradient(problem: Problem, tile: Tile) -> Cost:
    """Cost of a launch of ``convolution_input_gradient``."""
    B, M, O, rows = problem.batch_size, problem.hidden_size, problem.channels, problem.rows
    geometry, itemsize = problem.geometry, problem.dtype.size
    weights = O * geometry.taps * M
    across, down, _ = tile.groups(rows + B, M)
    # What a location reads through a tap, the reader gives back through it.
    read = B * (_inside(geometry) + _at_corner(geometry)) * O
    return Cost(
        INPUT_GRADIENT.name,
        {
            "d_activation": Access(rows * O, itemsize, loads=down * read),
            "weight": Access(weights, itemsize, loads=across * weights),
            "d_hidden": Access(rows * M, _FLOAT, stores=rows * M),
            "d_projected": Access(B * M, _FLOAT, stores=B * M),
        },
    )


def convolution_weight_gradient(problem: Problem, tile: Tile) -> Cost:
    """Cost of a launch of ``convolution_weight_gradient`` that adds to an earlier one's sums."""
    B, M, O, rows = problem.batch_size, problem.hidden_size, problem.channels, problem.rows
    geometry, itemsize = problem.geometry, problem.dtype.size
    depth = geometry.taps * M
    columns = geometry.taps * (-(-M // PACK) * PACK) + 1
    across, down, _ = tile.groups(O, columns)
    hidden = across * B * _inside(geometry) * M
    projected = across * B * _at_corner(geometry) * M
    buffers = {
        "hidden": Access(STEPS * rows * M, itemsize, loads=STEPS * hidden),
        "projected": Access(STEPS * B * M, itemsize, loads=STEPS * projected),
        "d_activation": Access(STEPS * rows * O, itemsize, loads=STEPS * down * rows * O),
        "d_weight": Access(O * depth, _FLOAT, stores=O * depth),
        "d_bias": Access(O, _FLOAT, stores=O),
        "weight_before": Access(O * depth, _FLOAT, loads=O * depth),
        "bias_before": Access(O, _FLOAT, loads=O),
    }
    return Cost(WEIGHT_GRADIENT.name, buffers)


def _statistics(problem: Problem) -> int:
    return 2 * (problem.rows if problem.norm == "channel" else problem.batch_size)


def memory_forward(problem: Problem) -> Cost:
    """Cost of a launch of ``memory_forward``."""
    B, M, rows = problem.batch_size, problem.hidden_size, problem.rows
    taps = problem.geometry.taps if problem.memory_convolution else 1
    state, activations, itemsize = rows * M, rows * problem.channels, problem.dtype.size
    # Layer normalisation reads the new cell again, for the variance and for the result.
    again = 2 * state if problem.norm == "layer" else 0
    statistics = _statistics(problem) if problem.norm else 2
    buffers = {
        "activation": Access(activations, itemsize, loads=activations),
        "cell_before": Access(state, _FLOAT, loads=taps * state),
        "hidden": Access(state, itemsize, stores=state),
        "cell": Access(state, _FLOAT, loads=again, stores=state),
        "far_corner": Access(B * M, itemsize, stores=B * M),
        "statistics": Access(statistics, _FLOAT, stores=statistics),
    }
    if problem.norm:
        for name in ("norm_gain", "norm_bias"):
            buffers[name] = Access(problem.geometry.locations * M, _FLOAT, loads=state)
    return Cost("memory_forward", buffers)


def memory_backward(problem: Problem) -> Cost:
    """Cost of a launch of ``memory_backward``, of a step that others follow."""
    B, M, rows = problem.batch_size, problem.hidden_size, problem.rows
    geometry, convolve, norm = problem.geometry, problem.memory_convolution, problem.norm
    state, activations, itemsize = rows * M, rows * problem.channels, problem.dtype.size
    kernels = rows * geometry.taps
    before = geometry.taps * state if convolve else state
    gathered = B * _inside(geometry) * M if convolve else state
    parked = state if norm == "layer" else 0
    buffers = {
        "d_hidden": Access(state, _FLOAT, loads=state),
        # The forget gate is needed before and after the memory convolution.
        "activation": Access(activations, itemsize, loads=activations + state),
        "cell_before": Access(state, _FLOAT, loads=before),
        "cell": Access(state, _FLOAT, loads=2 * state if norm else state),
        "d_activation": Access(activations, itemsize, stores=activations),
        "carried": Access(state, _FLOAT, loads=parked, stores=state + parked),
        "later_carried": Access(state, _FLOAT, loads=gathered),
        "d_output": Access(B * M, _FLOAT, loads=B * M),
    }
    if convolve:
        buffers["kernels"] = Access(kernels, _FLOAT, stores=kernels)
        buffers["later_kernels"] = Access(kernels, _FLOAT, loads=kernels)
    if norm:
        buffers["statistics"] = Access(_statistics(problem), _FLOAT, loads=2 * rows)
        for name in ("gain", "bias"):
            buffers[f"norm_{name}"] = Access(geometry.locations * M, _FLOAT, loads=state)
            buffers[f"{name}_sum"] = Access(state, _FLOAT, stores=state)
            buffers[f"later_{name}"] = Access(state, _FLOAT, loads=state)
    return Cost("memory_backward", buffers)


def step_costs(problem: Problem, tiles: dict[str, Tile]) -> list[Cost]:
    """Costs of a time step's launches, and of the weight gradient's launch for eight steps.

    Args:
        problem: The sizes.
        tiles: The tile of each convolution kernel by name; a kernel that has none is left out.
    """
    convolutions = {
        FORWARD.name: convolution_forward,
        INPUT_GRADIENT.name: convolution_input_gradient,
        WEIGHT_GRADIENT.name: convolution_weight_gradient,
    }
    costs = [cost(problem, tiles[name]) for name, cost in convolutions.items() if name in tiles]
    return [*costs, memory_forward(problem), memory_backward(problem)]

"""Numbers of a recording: channel means, and where memory comes from."""

from __future__ import annotations

import numpy as np

from mlx_tlstm.visualize.recording import Recording, on_diagonal, require_part


def channel_means(recording: Recording) -> np.ndarray:
    """Mean of the memory cell C over its channels, ``[B, T', *P]``.

    Raises:
        ValueError: The layer has no memory cell.
    """
    return require_part("channel_means", recording, "cell").mean(axis=-1)


def diagonal_means(recording: Recording) -> np.ndarray:
    """Channel means (Fig. 6) from location ``[1, …, 1]`` to ``[P, …, P]``, ``[B, T', P]``.

    With one axis, or for stacked layers, these are all locations.

    Raises:
        ValueError: The layer has no memory cell.
    """
    cell = require_part("diagonal_means", recording, "cell")
    return on_diagonal(cell.mean(axis=-1), recording.tensor_size)


def memory_offsets(recording: Recording) -> np.ndarray:
    """Mean offset on each axis of the memory that a location reads, ``[B, T', *P, axes]``.

    It is the mean of the taps' offsets, weighted by the location's kernel Q: -1 reads the neighbour
    towards the input, as a shift register does, and 0 the location itself. Taps beyond the tensor
    count as the boundary location that they repeat, so that the first location never reads from
    before it.

    Raises:
        ValueError: The layer has no memory convolution.
    """
    kernels = require_part("memory_offsets", recording, "kernels")
    axes = len(recording.tensor_size)
    means = []
    for axis, (P, K) in enumerate(
        zip(recording.tensor_size, kernels.shape[2 + axes :], strict=True)
    ):
        others = tuple(2 + axes + other for other in range(axes) if other != axis)
        along = np.moveaxis(kernels.sum(axis=others), 2 + axis, -2)  # [B, T', …, P, K]
        location = np.arange(P)[:, None]
        offsets = np.clip(location + np.arange(K) - K // 2, 0, P - 1) - location
        means.append(np.moveaxis((along * offsets).sum(axis=-1), -1, 2 + axis))
    return np.stack(means, axis=-1)

"""A sequence cut into its time steps, with a gradient whose cost does not grow with T²."""

from __future__ import annotations

import mlx.core as mx

#: Most pieces that are cut at once: MLX makes all results of one function know each other, which
#: would cost T² for T of them.
_AT_ONCE = 32


def pieces(array: mx.array, size: int, plain: bool = False) -> list[mx.array]:
    """An array ``[T, …]`` cut into ``[size, …]``; the last piece may be shorter.

    Its gradient joins those of the pieces, where MLX's own of a slice, and of ``mx.split``, makes
    an array as large as the whole for each piece. With ``plain`` it is made of such slices only.
    They halve the array again and again, for a gradient of O(T log T) elements and not O(T²).
    """
    pending, cut = [array], []
    while pending:
        part = pending.pop()
        count = -(-part.shape[0] // size)
        if count == 1:
            cut.append(part)
        elif plain:
            half = count // 2 * size
            pending += [part[half:], part[:half]]
        else:
            width = size
            while width * _AT_ONCE < part.shape[0]:
                width *= _AT_ONCE
            pending += reversed(_cut(part, width))
    return cut


def _cut(array: mx.array, width: int) -> list[mx.array]:
    """An array ``[T, …]`` as ``[width, …]`` and a rest, with a gradient that joins theirs."""

    @mx.custom_function
    def cut(array: mx.array) -> list[mx.array]:
        return [array[start : start + width] for start in range(0, array.shape[0], width)]

    cut.vjp(lambda _, cotangents, __: mx.concatenate(cotangents))
    return cut(array)


def time_steps(array: mx.array, plain: bool = False) -> list[mx.array]:
    """The time steps of an array ``[T, …]``; see :func:`pieces`."""
    return [part.squeeze(0) for part in pieces(array, 1, plain)]

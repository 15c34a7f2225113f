"""A sequence cut into its time steps, with a gradient whose cost does not grow with T²."""

from __future__ import annotations

import mlx.core as mx


def pieces(array: mx.array, size: int, plain: bool = False) -> list[mx.array]:
    """An array ``[T, …]`` cut into ``[size, …]``; the last piece may be shorter.

    Its gradient joins those of the pieces, where MLX's own of a slice, and of ``mx.split``, makes
    an array as large as the whole for each piece. With ``plain`` it is made of such slices only.
    They halve the array again and again, for a gradient of O(T log T) elements and not O(T²).
    """

    def halved(array: mx.array) -> list[mx.array]:
        pending, cut = [array], []
        while pending:
            part = pending.pop()
            count = -(-part.shape[0] // size)
            if count == 1:
                cut.append(part)
            else:
                half = count // 2 * size
                pending += [part[half:], part[:half]]
        return cut

    if plain or array.shape[0] <= size:
        return halved(array)
    cut = mx.custom_function(halved)
    cut.vjp(lambda _, cotangents, __: mx.concatenate(cotangents))
    return cut(array)


def time_steps(array: mx.array, plain: bool = False) -> list[mx.array]:
    """The time steps of an array ``[T, …]``; see :func:`pieces`."""
    return [part.squeeze(0) for part in pieces(array, 1, plain)]

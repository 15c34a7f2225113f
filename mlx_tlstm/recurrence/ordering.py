"""A way to tell MLX, which decides by itself when to compute an array, to do so after another."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx


def after(arrays: Sequence[mx.array], computed: Sequence[mx.array]) -> list[mx.array]:
    """The same arrays, but MLX computes what uses them only after all of ``computed``.

    ``mx.compile`` merges equal computations; it takes those from ``arrays`` and from the result for
    different ones, so that the second is made anew. ``mx.depends`` does the same, but ``mx.vmap``
    refuses it.
    """
    count = len(arrays)
    if count == 0:
        return []

    @mx.custom_function
    def held(*both: mx.array) -> tuple[mx.array, ...]:
        return both[:count]

    @held.vjp
    def held_vjp(primals, cotangents, _):
        return (*cotangents, *(mx.zeros_like(array) for array in primals[count:]))

    return list(held(*arrays, *computed))

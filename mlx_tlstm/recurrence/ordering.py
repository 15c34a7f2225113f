"""When arrays are computed, and how often."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx


def after(arrays: Sequence[mx.array], computed: Sequence[mx.array]) -> list[mx.array]:
    """The same arrays, but none is there before all of ``computed`` are.

    ``mx.compile`` shares nothing that is made from them with what is made from ``arrays``. It is
    ``mx.depends``, which ``mx.vmap`` refuses.
    """
    count = len(arrays)

    @mx.custom_function
    def held(*both: mx.array) -> tuple[mx.array, ...]:
        return both[:count]

    @held.vjp
    def held_vjp(primals, cotangents, _):
        return (*cotangents, *(mx.zeros_like(array) for array in primals[count:]))

    return list(held(*arrays, *computed))

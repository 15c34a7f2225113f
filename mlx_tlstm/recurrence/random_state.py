"""The key from which ``mx.random`` draws its next number; each thread has its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import mlx.core as mx

from mlx_tlstm.recurrence.captured import handle


def current_key() -> mx.array:
    """The key, as an array of its own."""
    return handle(mx.random.state[0])


def set_key(key: mx.array) -> None:
    """Draw from ``key`` on. The state's array is written to, since MLX lets nobody replace it."""
    mx.random.state[0][...] = key


@contextlib.contextmanager
def random_key(key: mx.array) -> Iterator[None]:
    """Draw from ``key`` on, and afterwards go on from where it was before."""
    before = current_key()
    set_key(key)
    try:
        yield
    finally:
        set_key(before)

"""What a device says where it fails, and the end of what failed with it."""

from __future__ import annotations

import contextlib
import re

import mlx.core as mx

from mlx_tlstm.files import without_home

#: Characters of an error that a line has room for: a compiler's can be pages long.
_LENGTH = 400
#: What a compiler finds wrong first, with its place; warnings may stand before it.
_FIRST_ERROR = re.compile(r"(?:\S+: )?(?:fatal )?error: ")
#: What MLX's errors begin with where a device has no memory, was stopped, or is not there.
_FAILURES = re.compile(
    r"\[(METAL|malloc|metal::malloc|metal::load_device)\]|cu(da|blas|dnn)?[A-Z]\w*\b.* failed"
)
#: How many errors may wait at most, each of which ends an attempt to wait for the rest.
_WAITING = 10


def whole(error: BaseException) -> str:
    """All of an error's text and of its cause's, with ``~`` for the home folder."""
    texts = [str(one) or type(one).__name__ for one in (error, error.__cause__) if one]
    return without_home("\n".join(texts))


def in_a_line(error: BaseException) -> str:
    """The first line of an error's text and what a compiler finds wrong first, as one line."""
    first, _, rest = without_home(str(error).strip() or type(error).__name__).partition("\n")
    found = _FIRST_ERROR.search(rest)
    rest = " ".join(rest[found.start() if found else 0 :].split())
    return f"{first} {rest[:_LENGTH]}".strip()


def device_failed(error: RuntimeError) -> bool:
    """Whether an error of MLX's is of the device, not of the program."""
    return _FAILURES.match(str(error)) is not None


def settle() -> None:
    """Wait for what still runs after a failure, and drop its errors.

    MLX raises an error of what runs on at the next operation, whoever's it is: a GPU's in its own
    stream, and in the CPU's where that waits for the GPU.
    """
    for device in (mx.default_device(), mx.cpu):
        for _ in range(_WAITING):
            with contextlib.suppress(Exception):  # the failure itself is what is to be told
                mx.synchronize(mx.default_stream(device))
                break

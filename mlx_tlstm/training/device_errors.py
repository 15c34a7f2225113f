"""What MLX says where a device has failed, or has no memory left, and not the program."""

from __future__ import annotations

import re

_FAILURES = re.compile(
    r"\[(METAL|malloc|metal::malloc|metal::load_device)\]|cu(da|blas|dnn)?[A-Z]\w*\b.* failed"
)


def device_failed(error: RuntimeError) -> bool:
    """Whether an error of MLX's says so: no memory, a time limit, other programs, no device."""
    return _FAILURES.match(str(error)) is not None

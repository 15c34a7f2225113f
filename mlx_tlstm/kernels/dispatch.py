"""What runs a layer: Metal kernels, the same through CUDA, plain operations, or the equations."""

from __future__ import annotations

import os

import mlx.core as mx

from mlx_tlstm.checks import require, require_choice
from mlx_tlstm.kernels import faults
from mlx_tlstm.kernels.backend import KernelBackend
from mlx_tlstm.kernels.tuning import architecture
from mlx_tlstm.ops import PlainBackend
from mlx_tlstm.recurrence.contract import Backend
from mlx_tlstm.reference import ReferenceBackend

#: What a layer's ``backend`` may be, besides ``None``: whatever suits the default device.
BACKENDS: dict[str, type[Backend]] = {
    "ops": PlainBackend,
    "metal": KernelBackend,
    "cuda": KernelBackend,
    "reference": ReferenceBackend,
}

#: Those that run everywhere.
_EVERYWHERE = tuple(name for name, kind in BACKENDS.items() if kind.plain)

#: Overrides the choice of layers that have no ``backend`` of their own.
ENVIRONMENT_VARIABLE = "MLX_TLSTM_BACKEND"

#: Largest number of tensor axes that the kernels take.
MAX_AXES = 3


class BackendError(ValueError):
    """A layer's backend, or the environment variable's, is one that there is not, or not here."""


def kernel_backend() -> tuple[str | None, str]:
    """The backend whose kernels run on the default device, else ``None`` and why there is none."""
    device = mx.default_device()
    if device.type != mx.gpu:
        return None, f"the default device is {device}, which runs plain operations"
    if mx.cuda.is_available():
        return "cuda", ""
    if not mx.metal.is_available():
        return None, "MLX has neither Metal nor CUDA here"
    try:
        architecture()
    except RuntimeError as error:  # MLX says that there is Metal also where it finds no device
        return None, f"no Metal device: {faults.in_a_line(error)}"
    return "metal", ""


def named_backend(requested: str | None) -> tuple[str | None, str]:
    """The backend that the user named, if any, and the argument or variable that named it.

    Args:
        requested: The layer's ``backend``; ``None`` leaves it to ``MLX_TLSTM_BACKEND``.
    """
    if requested is not None:
        return requested, "backend"
    return os.environ.get(ENVIRONMENT_VARIABLE) or None, ENVIRONMENT_VARIABLE


def select_backend(owner: str, requested: str | None, axes: int) -> str:
    """The backend that a layer runs now.

    Args:
        owner: The layer's class, for messages.
        requested: The layer's ``backend``; ``None`` leaves it to the environment variable
            ``MLX_TLSTM_BACKEND`` and then to the default device.
        axes: The layer's number of tensor axes.

    Raises:
        BackendError: The name is unknown, or this machine, its default device or the kernels lack
            what was asked for.
    """
    try:
        return _selected(owner, *named_backend(requested), axes)
    except ValueError as error:
        raise BackendError(str(error)) from None


def _selected(owner: str, requested: str | None, argument: str, axes: int) -> str:
    if requested is not None:
        require_choice(owner, argument, requested, BACKENDS)
    if requested in _EVERYWHERE:
        return requested
    available, reason = kernel_backend()
    if axes > MAX_AXES:
        available, reason = None, f"the kernels take up to {MAX_AXES} tensor axes, not {axes}"
    if requested is None:
        return available or "ops"
    here = " or ".join(map(repr, ((available,) if available else ()) + _EVERYWHERE)) + " here"
    expected = here if available else f"{here} ({reason})"
    require(requested == available, owner, argument, expected, requested)
    return requested

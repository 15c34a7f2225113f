"""Where a command runs: ``--device`` and ``--backend``, which no run or model stores."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import click
import mlx.core as mx

from mlx_tlstm import kernels

DEVICES = ("cpu", "gpu")
AUTO = "auto"


def device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--device`` to a click command; it is MLX's default device while the command runs."""

    @functools.wraps(command)
    def on_device(*arguments: Any, device: str | None, **options: Any) -> Any:
        before = mx.default_device()
        if device is not None:
            if not mx.is_available(getattr(mx, device)):
                _refuse("'--device'", f"MLX has no {device.upper()} here")
            mx.set_default_device(getattr(mx, device))
        try:
            return command(*arguments, **options)
        finally:
            mx.set_default_device(before)

    return click.option(
        "--device",
        type=click.Choice(DEVICES),
        help="Where MLX computes; by default on the GPU if there is one.",
    )(on_device)


def backend_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--backend`` to a click command, which gets it as the argument ``backend``.

    It, or else the environment variable, is checked against the device, so :func:`device_option`
    has to stand above it.
    """

    @functools.wraps(command)
    def with_backend(*arguments: Any, backend: str, **options: Any) -> Any:
        requested = None if backend == AUTO else backend
        try:
            kernels.select_backend("layer", requested, axes=1)
        except kernels.BackendError as error:
            _refuse("'--backend'" if requested else kernels.ENVIRONMENT_VARIABLE, str(error))
        return command(*arguments, backend=requested, **options)

    return click.option(
        "--backend",
        type=click.Choice([AUTO, *kernels.BACKENDS]),
        default=AUTO,
        show_default=True,
        help="How layers compute: by plain MLX operations (ops), kernels (metal, cuda) or the "
        "paper's equations as they stand (reference); auto takes what suits the device.",
    )(with_backend)


def _refuse(name: str, message: str) -> NoReturn:
    raise click.BadParameter(message, click.get_current_context(), param_hint=name)


def chosen(context: click.Context) -> str:
    """The ``--device`` and ``--backend`` of this command line, to be repeated in another one.

    Each option has a space before it.
    """
    device, backend = context.params["device"], context.params["backend"]
    given = {"--device": device, "--backend": None if backend == AUTO else backend}
    return "".join(f" {option} {value}" for option, value in given.items() if value)

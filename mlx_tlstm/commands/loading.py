"""What the commands share that run a trained model: MODEL, ``--weights``, and where it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mlx_tlstm import kernels
from mlx_tlstm.checks import require_choice
from mlx_tlstm.commands.devices import backend_option, device_option
from mlx_tlstm.layers.tensor import TensorCell
from mlx_tlstm.models import hub
from mlx_tlstm.models.sequence import SequenceModel
from mlx_tlstm.models.trained import WEIGHTS


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add MODEL and options to a click command, which gets ``model, weights, backend``."""
    weights_option = click.option(
        "--weights",
        type=click.Choice(WEIGHTS),
        default=WEIGHTS[0],
        show_default=True,
        help="Which weights to take, where MODEL is a training run.",
    )
    argument = click.argument("model", metavar="MODEL")
    return argument(weights_option(device_option(backend_option(command))))


def load_model(model: str, weights: str, backend: str | None) -> SequenceModel:
    """The model that the options name; without a ``backend`` the device decides.

    Raises:
        ValueError: There is no such model, it is damaged, or the backend cannot run its layer.
    """
    network = hub.load(model, weights)
    cell = network.layer.cell
    if not isinstance(cell, TensorCell):
        require_choice(type(cell).__name__, "backend", backend, (None, "ops"))
    elif backend is not None:
        cell.backend = kernels.select_backend(type(cell).__name__, backend, cell.geometry.axes)
    return network

"""The command line ``mlx-tlstm``, made of the other modules' commands."""

from __future__ import annotations

import click

from mlx_tlstm.commands.base import Group
from mlx_tlstm.commands.checking import check
from mlx_tlstm.commands.data import data
from mlx_tlstm.commands.evaluation import evaluate
from mlx_tlstm.commands.generation import generate
from mlx_tlstm.commands.sharing import pull, push
from mlx_tlstm.commands.training import train


@click.group(cls=Group)
@click.version_option(package_name="mlx-tlstm", prog_name="mlx-tlstm")
def main() -> None:
    """Tensorized LSTMs for MLX."""


for command in (train, evaluate, generate, check, data, push, pull):
    main.add_command(command)

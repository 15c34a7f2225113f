"""``mlx-tlstm push`` and ``mlx-tlstm pull``: models on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.models import hub
from mlx_tlstm.models.folder import require_unused


@click.command(cls=Command)
@click.argument("model", type=UserPath())
@click.argument("repository")
@click.option(
    "--public", is_flag=True, help="Make a new repository public; by default it is private."
)
@click.option("--license", help="Licence of the model for its card, such as mit.")
def push(model: Path, repository: str, public: bool, license: str | None) -> None:
    """Upload MODEL to REPOSITORY, user/name, on the Hugging Face hub.

    MODEL is the folder of a training run, of which the best weights are uploaded, or of a saved
    model. A model card is added. Log in first, with `hf auth login` or the variable HF_TOKEN.
    """
    with clean_errors(bad_input=True):
        address = hub.push(model, repository, private=not public, license=license)
    click.echo(address)


@click.command(cls=Command)
@click.argument("repository")
@click.argument("folder", type=UserPath())
@click.option("--revision", help="Branch, tag or commit; by default the main branch.")
def pull(repository: str, folder: Path, revision: str | None) -> None:
    """Download a model from the Hugging Face hub; REPOSITORY is user/name.

    FOLDER is a new one, or one that is empty.
    """
    with clean_errors(bad_input=True):
        require_unused(folder)  # before there is a download
        hub.pull(repository, revision).save(folder)
    click.echo(f"saved in {folder}")

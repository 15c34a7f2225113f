"""Run the sources NOTEBOOK (all of notebooks/ by default) and write them with their outputs."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path

import click
import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.paths import UserPath

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SIZES = ("full", "small")
#: Read by the notebooks.
SIZE_VARIABLE = "MLX_TLSTM_NOTEBOOK_SIZE"


def convert(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source in jupytext's percent format, without outputs.

    Cells are named by their numbers, so that building twice gives the same file.
    """
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number}"
    # Neither how the source is written nor Python's version is of interest.
    kernel = notebook.metadata["kernelspec"]
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return notebook


def execute(notebook: nbformat.NotebookNode, size: str) -> None:
    """Run all cells in the folder of the notebooks, and keep their outputs.

    Raises:
        CellExecutionError: A cell failed.
    """
    language = notebook.metadata["language_info"]
    client = NotebookClient(
        notebook,
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": FOLDER}},
    )
    client.execute(env=os.environ | {SIZE_VARIABLE: size})
    notebook.metadata["language_info"] = language


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """The text outputs of all cells."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [
        output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs
    ]


def private_words(notebook: nbformat.NotebookNode) -> list[str]:
    """Names of this machine and of its folders that stand in the outputs."""
    names = (platform.node(), str(FOLDER.parent), str(Path.home()), tempfile.gettempdir())
    return [name for name in names if any(name in text for text in texts(notebook))]


@click.command(cls=Command, keeps_results=True, help=__doc__)
@click.argument("notebook", nargs=-1, type=UserPath(exists=True, dir_okay=False))
@click.option(
    "--size",
    type=click.Choice(SIZES),
    default=SIZES[0],
    show_default=True,
    help="How much each notebook computes; what is committed is full.",
)
def main(notebook: tuple[Path, ...], size: str) -> None:
    for source in notebook or sorted(FOLDER.glob("*.py")):
        built = convert(source)
        try:
            execute(built, size)
        except CellExecutionError as error:
            raise click.ClickException(f"{source.name}: {error}") from error
        private = private_words(built)
        if private:
            raise click.ClickException(f"{source.name}: the outputs name {', '.join(private)}")
        target = source.with_suffix(".ipynb")
        nbformat.write(built, target)
        click.echo(f"{target.name}: {len(built.cells)} cells, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

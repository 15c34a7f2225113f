"""The notebooks: built from their sources, free of what is private, and run cell by cell."""

from __future__ import annotations

import os
import re
from pathlib import Path

import build_notebooks
import nbformat
import pytest
from experiments.paper import PAPER_TASKS
from processes import ROOT

import mlx_tlstm
from mlx_tlstm.training import format_metrics

SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
MODELS = sorted(path for path in (ROOT / "notebooks" / "models").iterdir() if path.is_dir())
LARGEST = 1_000_000  # bytes of a notebook with its outputs, or of a model's file
ABSOLUTE_PATH = re.compile(r"(?<![\w./])/(?:home|root|tmp|work|opt|usr|var|private|Users)\b")


def names(paths):
    return [path.stem for path in paths]


def read(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def test_every_notebook_has_a_source():
    assert names(SOURCES) == [
        "01_quickstart",
        "02_memory_cells",
        "03_from_lstm_to_tlstm",
        "04_bring_your_own",
    ]
    assert names(sorted((ROOT / "notebooks").glob("*.ipynb"))) == names(SOURCES)


@pytest.mark.parametrize("source", SOURCES, ids=names(SOURCES))
class TestBuilt:
    def test_cells_are_those_of_the_source(self, source):
        built, expected = read(source), build_notebooks.convert(source)
        nbformat.validate(built)
        assert [(c.cell_type, c.id, c.source) for c in built.cells] == [
            (c.cell_type, c.id, c.source) for c in expected.cells
        ]
        assert built.metadata == expected.metadata

    def test_it_was_run_from_top_to_bottom_without_error(self, source):
        code = [cell for cell in read(source).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        outputs = [output for cell in code for output in cell.outputs]
        assert {output.output_type for output in outputs} <= {
            "stream",
            "display_data",
            "execute_result",
        }
        assert all(output.get("name") != "stderr" for output in outputs)
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert len(pictures) >= 1

    def test_it_is_small_and_names_no_folder(self, source):
        assert source.with_suffix(".ipynb").stat().st_size < LARGEST
        found = [text for text in build_notebooks.texts(read(source)) if ABSOLUTE_PATH.search(text)]
        assert found == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_cell_runs(source, monkeypatch):
    """At the small size, in the folder in which a person opens it."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    build_notebooks.execute(read(source), "small")


def test_private_words_are_found_before_a_notebook_is_written():
    output = nbformat.v4.new_output("stream", text=f"saved in {Path.home()}/runs\n")
    cell = nbformat.v4.new_code_cell("train()", outputs=[output])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    assert build_notebooks.private_words(notebook) == [str(Path.home())]
    output.text = "saved in runs\n"
    assert build_notebooks.private_words(notebook) == []


def model_rows():
    """The cells of the README's table of models by the model's name."""
    lines = (ROOT / "notebooks" / "README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:3] == "| `"]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_table_has_the_models_that_are_there():
    assert list(model_rows()) == names(MODELS)
    assert {mlx_tlstm.load(path).metadata.task for path in MODELS} >= set(PAPER_TASKS)


@pytest.mark.parametrize("path", MODELS, ids=names(MODELS))
def test_a_model_is_small_and_its_row_says_what_it_is(path):
    assert all(file.stat().st_size < LARGEST for file in path.iterdir())
    model = mlx_tlstm.load(path)
    network, command, commit, metrics = model_rows()[path.name]
    training = model.metadata.training
    assert network == f"{training.variant}, L={training.depth}, M={training.hidden_size}"
    assert command == f"`{model.metadata.command}`"
    assert re.fullmatch("[0-9a-f]{7}", commit)
    assert model.metadata.metrics["split"] == "test"
    assert metrics == format_metrics(model.metadata.metrics)

"""Paths that users give: home folders, empty ones, and names that are nearly right."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from processes import ROOT
from tiny_tasks import Stop, StopAt, tiny_settings, write_images, write_text

import mlx_tlstm
from mlx_tlstm import training
from mlx_tlstm.commands.main import main
from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks import make_task
from mlx_tlstm.training.origin import task_of
from mlx_tlstm.training.runs import RunFolder
from mlx_tlstm.visualize import save_figure

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("name", [*main.commands, *(script.stem for script in SCRIPTS)])
def test_every_path_of_a_command_line(name, home):
    """An empty one is refused by name, and none is read in another way than the others."""
    command = main.commands.get(name) or importlib.import_module(name).main
    paths = [p for p in command.params if isinstance(p.type, click.Path)]
    assert all(isinstance(parameter.type, UserPath) for parameter in paths)
    looking = ("data", "out", "resume", "json", "path", "file", "folder", "into", "times")
    named = [p for p in command.params if any(word in p.name for word in looking)]
    assert [p for p in named if p not in paths and not p.is_flag] == []
    for parameter in paths:
        if isinstance(parameter, click.Option):
            done = CliRunner().invoke(command, [f"{parameter.opts[0]}="])
            assert done.exit_code == 2, done.output
            assert f"'{parameter.name}' must be a path but got ''" in done.output
    assert not list(Path.cwd().iterdir())


def test_types_of_paths(home):
    (home / "file").write_text("")
    assert UserPath().convert("~/gone", None, None) == home / "gone"
    assert UserPath(exists=True, dir_okay=False).convert("~/file", None, None) == home / "file"
    with pytest.raises(click.BadParameter, match=r"home' is a directory"):
        UserPath(dir_okay=False).convert("~", None, None)
    with pytest.raises(click.BadParameter, match=r"home/gone' does not exist"):
        UserPath(exists=True).convert("~/gone", None, None)


@pytest.fixture
def settings(tmp_path, home):
    return tiny_settings(write_text(home / "text"), write_images(home))


def test_python(settings, home):
    """Every function that takes a path."""
    result = training.fit(settings("wikipedia", data="~/text"), "~/run")
    assert result.folder == home / "run"
    assert (home / "run" / "test.json").exists()
    (home / "run" / "test.json").unlink()
    training.resume("~/run", data="~/text")
    assert RunFolder.open("~/run").config.data == str(home / "text")
    model = mlx_tlstm.load("~/run")
    model.save("~/model")
    assert task_of(mlx_tlstm.load("~/model"), "~/text").config.data == str(home / "text")
    assert mlx_tlstm.SequenceModel.load("~/model").metadata.command == model.metadata.command
    assert make_task(settings("mnist", data="~")).split_sizes()["test"] == 10
    model.metadata.training.save("~/config")
    assert TrainingConfig.load("~/config") == model.metadata.training
    assert not list(Path.cwd().iterdir())


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
def test_names_that_are_no_text(settings, home, monkeypatch):
    """Folders and data whose names are bytes that are no UTF-8."""
    odd = os.fsdecode(b"o\xff")
    (home / "text").rename(home / odd)
    config = settings("wikipedia", data=str(home / odd))
    with pytest.raises(Stop):
        training.fit(config, home / "runs" / odd, [StopAt(step=3)])
    training.resume(home / "runs" / odd, [training.Progress(bar=False)])
    model = mlx_tlstm.load(home / "runs" / odd)
    model.save(home / "models" / odd)
    assert mlx_tlstm.load(home / "models" / odd).metadata.training.data == odd
    sent = []
    api = SimpleNamespace(
        create_repo=lambda *_, **__: None,
        create_commit=lambda _, files, **__: (
            sent.extend(Path(file.path_or_fileobj).read_text() for file in files[2:])
            or SimpleNamespace(commit_url="address")
        ),
    )
    monkeypatch.chdir(home)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    assert mlx_tlstm.push(model, "user/name") == "address"
    assert "--data 'o?'" in sent[0]
    for command in (
        ["evaluate", os.fsdecode(b"runs/o\xff")],
        ["train", "memorization", "--out", f"new/{odd}", "--samples", "4", "--hidden-size", "4"],
    ):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output


def test_python_refuses_empty_paths(settings, home):
    training.fit(settings("addition"), home / "run")
    model = mlx_tlstm.load(home / "run")
    for call in (
        lambda: training.fit(settings("addition"), ""),
        lambda: training.fit(settings("wikipedia", data=""), "run"),
        lambda: training.fit(settings("mnist", data=""), "run"),
        lambda: training.resume(""),
        lambda: mlx_tlstm.load(""),
        lambda: mlx_tlstm.load(None),
        lambda: mlx_tlstm.push("", "some/model"),
        lambda: mlx_tlstm.SequenceModel.load(""),
        lambda: model.save(""),
        lambda: task_of(model, ""),
        lambda: TrainingConfig.load(""),
        lambda: save_figure(None, ""),
    ):
        with pytest.raises(ValueError, match="must be a path but got"):
            call()
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("script", ["benchmark", "latency", "tune"])
def test_a_file_for_figures_needs_its_folder(script, home):
    """It is said before anything is measured."""
    command = importlib.import_module(script).main
    done = CliRunner().invoke(command, ["--json", "gone/figures.json"])
    assert done.exit_code == 2
    assert "there is no folder 'gone' to write 'figures.json' in" in done.output


@pytest.mark.parametrize("stem", [".", "..", "/", "a/.."])
def test_pictures_need_a_name(stem, home):
    with pytest.raises(ValueError, match="'stem' must be a path that ends in a file's name"):
        save_figure(None, stem)
    assert not list(Path.cwd().iterdir())

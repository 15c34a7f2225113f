"""The models in a run's folder, which are whole at any moment."""

from __future__ import annotations

import os
import shutil
import sys

import mlx.core as mx
import numpy as np
import pytest
from kill_and_resume import EVENTS
from mlx.utils import tree_flatten
from tiny_tasks import Stop, StopAt

import mlx_tlstm
from mlx_tlstm import SequenceModel, training
from mlx_tlstm.models.trained import WEIGHTS
from mlx_tlstm.tasks import make_task
from mlx_tlstm.training import build_model
from mlx_tlstm.training.runs import RunFolder

FILE = "model.safetensors"


class Moments:
    """Copies a folder before whatever is done to its files, and within the writing of arrays.

    Each copy is what a process that is killed there leaves.
    """

    def __init__(self, folder, copies):
        self.folder, self.copies, self.names = folder, copies, []
        self._on = self._save = False
        sys.addaudithook(self._hook)  # it stays, but does nothing any more

    def take(self, name):
        if self._on:
            self._on = False
            shutil.copytree(self.folder, self.copies / str(len(self.names)))
            self.names.append(name)
            self._on = True

    def _hook(self, event, arguments):
        if self._on and event in EVENTS and str(arguments[0]).startswith(str(self.folder)):
            self.take(event)

    def during(self, work, monkeypatch):
        """The copies taken while ``work`` is done, and one after it."""
        fsync, save = os.fsync, mx.save_safetensors

        def synced(descriptor):
            self.take("fsync")
            fsync(descriptor)

        def torn(file, *content):
            save(file, *content)
            file.flush()
            end = file.tell()
            whole = (self.folder / file.name).read_bytes()
            os.truncate(file.fileno(), end // 2)
            self.take("half written")
            file.seek(0)
            file.write(whole)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", synced)
            patch.setattr(mx, "save_safetensors", torn)
            self._on = True
            work()
            self.take("end")
            self._on = False
        return [self.copies / str(number) for number in range(len(self.names))]


def versions_of(config):
    """Three models with other weights, and figures that tell which they are."""
    model = build_model(config, make_task(config))
    versions = []
    for number in range(3):
        model.readout.bias = mx.full(model.readout.bias.shape, number, model.readout.bias.dtype)
        metrics = {"split": "test", "samples": number, "loss": number / 4}
        versions.append((dict(tree_flatten(model.parameters())), metrics))
    return model, versions


def version(folder):
    """The number of the version that a folder holds; its weights, figures and config agree."""
    model = SequenceModel.load(folder)
    number = model.metadata.metrics["samples"]
    assert model.metadata.metrics == {"split": "test", "samples": number, "loss": number / 4}
    np.testing.assert_array_equal(np.array(model.readout.bias.astype(mx.float32)), number)
    assert model.metadata.task == "wikipedia"
    assert len(model.metadata.symbols) == len(model.readout.bias)
    return number


@pytest.mark.parametrize(("name", "dtype"), [("best", "float32"), ("last", "bfloat16")])
def test_a_model_is_the_old_or_the_new_at_any_moment(name, dtype, settings, tmp_path, monkeypatch):
    config = settings("wikipedia", dtype=dtype)
    run = RunFolder.create(tmp_path / "run", config)
    model, versions = versions_of(config)
    described, found = set(), []

    def save():
        for parameters, metrics in versions:
            model.load_weights(list(parameters.items()))
            run.save_model(name, model, metrics)

    moments = Moments(run.path, tmp_path / "copies")
    copies = moments.during(save, monkeypatch)
    assert set(moments.names) >= {"open", "os.mkdir", "os.rename", "fsync", "half written", "end"}
    for copy in copies:
        folder = copy / name
        if (folder / "config.json").exists():
            described.add((folder / "config.json").read_bytes())
        if (folder / FILE).exists():
            found.append(version(folder))
            assert mlx_tlstm.load(copy, name).metadata.metrics["samples"] == found[-1]
        else:
            assert not found, "it was there before"
            with pytest.raises(ValueError, match=r"'weights' must be saved in the run but"):
                mlx_tlstm.load(copy, name)
    assert found == sorted(found)
    assert {*found} == {0, 1, 2}
    assert found.count(0) > 3  # the old one while the new one is written
    assert len(described) == 1


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_checkpoint_puts_models_back_whole(name, settings, tmp_path, monkeypatch):
    """Going on from an older checkpoint: a model is that of then, or of before, at any moment."""
    config, run = settings("wikipedia", checkpoint_every=3), tmp_path / "run"
    with pytest.raises(Stop):
        training.fit(config, run, [StopAt(5)])
    whole = {path.read_bytes() for path in run.rglob("*.safetensors") if path.stem != "optimizer"}
    trainer, folder = training.reopen(run)
    moments = Moments(run, tmp_path / "copies")
    copies = moments.during(lambda: training.disk.RunOnDisk(trainer, folder, print), monkeypatch)
    assert len(copies) > 10
    for copy in copies:
        assert (copy / name / FILE).read_bytes() in whole
        mlx_tlstm.load(copy, name)


def test_figures_of_last_weights(settings, tmp_path):
    """Of weights that no evaluation has seen it is known when they were, and no more."""

    class Interrupt(training.Callback):
        def __init__(self, step):
            self._step = step

        def on_step(self, trainer, report):
            if trainer.step == self._step:
                os.kill(os.getpid(), 15)

    config = settings("mnist")
    for step in (2, 3):  # an evaluation comes after the second and the fourth
        run = tmp_path / str(step)
        with pytest.raises(training.TrainingInterrupted):
            training.fit(config, run, [Interrupt(step)])
    assert mlx_tlstm.load(tmp_path / "3", "last").metadata.metrics == {"samples": 12}
    assert mlx_tlstm.load(tmp_path / "3").metadata.metrics["samples"] == 8
    training.resume(tmp_path / "3")
    (record,) = RunFolder.open(tmp_path / "3").read_metrics()[-1:]
    metrics = mlx_tlstm.load(tmp_path / "3", "last").metadata.metrics
    assert metrics["loss"] == record["evaluation_loss"]
    assert {name: record[name] for name in metrics if name != "loss"} == {
        name: value for name, value in metrics.items() if name != "loss"
    }


def test_the_result_knows_where_it_comes_from(settings, tmp_path):
    result = training.fit(settings("wikipedia"), tmp_path / "run")
    assert result.model.metadata == mlx_tlstm.load(tmp_path / "run").metadata
    result.model.save(tmp_path / "model")
    for name in ("config.json", FILE):
        in_run = (tmp_path / "run" / "best" / name).read_bytes()
        assert (tmp_path / "model" / name).read_bytes() == in_run

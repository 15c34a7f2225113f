"""Checkpoints on the disk: kept, damaged, and not to be written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import subprocess
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from disk_order import DiskOrder
from kill_and_resume import outcome
from mlx.utils import tree_flatten
from tiny_tasks import Stop, StopAt

from mlx_tlstm import training
from mlx_tlstm.tasks import make_task
from mlx_tlstm.training.checkpoints import CheckpointStore
from mlx_tlstm.training.runs import RunFolder

OFTEN = {"samples": 48, "checkpoint_every": 3, "checkpoint_seconds": 0}


@pytest.fixture(scope="module")
def template(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    config = settings("wikipedia", **OFTEN)
    training.fit(config, folder / "whole")
    with pytest.raises(Stop):
        training.fit(config, folder / "run", [StopAt(11)])
    return folder


@pytest.fixture
def stopped(template, tmp_path):
    """A run stopped at step 11, with checkpoints of steps 3, 6 and 9, and what it should end as."""
    shutil.copytree(template / "run", tmp_path / "run")
    return tmp_path / "run", outcome(template / "whole")


def checkpoints(run):
    """Their folders, newest first."""
    return sorted((run / "checkpoints").iterdir(), reverse=True)


def test_what_is_kept(stopped):
    run, _ = stopped
    assert [path.name for path in checkpoints(run)] == [
        *("000003-step-000000009", "000002-step-000000006", "000001-step-000000003")
    ]
    names = {"state", "manifest", "weights", "optimizer", "carried", "best", "last", "metrics"}
    for path in checkpoints(run):
        found = {file.name for file in path.iterdir()}
        assert {name.partition(".")[0] for name in found} == names
        manifest = json.loads((path / "manifest.json").read_text())
        assert manifest["format"] == 1
        assert manifest["files"].keys() == found - {"manifest.json"}


def test_content(stopped, settings):
    """Weights and moments are float32 and those of the moment; the best weights lie beside."""
    trainer = training.Trainer(settings("wikipedia", **OFTEN))
    for _ in range(9):
        trainer.train_step()
    path = checkpoints(stopped[0])[0]
    expected = {
        "weights": dict(tree_flatten(trainer.weights)),
        "optimizer": dict(tree_flatten(trainer.optimizer.state)),
        "carried": trainer.carried._asdict(),
    }
    for name, arrays in expected.items():
        found = mx.load(str(path / f"{name}.safetensors"))
        assert found.keys() == arrays.keys()
        for key, array in arrays.items():
            assert found[key].dtype == array.dtype
            np.testing.assert_array_equal(np.array(found[key]), np.array(array))
    assert json.loads((path / "state.json").read_text())["step"] == 9
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_number_kept(keep, settings, tmp_path):
    config = settings("addition", keep_checkpoints=keep, **{**OFTEN, "checkpoint_every": 1})
    training.fit(config, tmp_path / "run")
    steps = [int(path.name[-9:]) for path in checkpoints(tmp_path / "run")]
    assert steps == list(range(12, 12 - keep, -1))


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order, files = DiskOrder(monkeypatch), ("weights.safetensors", "state.json")
    store = CheckpointStore(tmp_path / "checkpoints", 3)
    path = store.write(7, {name: lambda path: path.write_text("content") for name in files}).path
    assert order.of(tmp_path)[0] == "sync ."  # the name of their folder
    *before, rename, after = order.of(store.path)
    written = [path.name, *(f"{path.name}/{name}" for name in (*files, "manifest.json"))]
    assert sorted(before) == sorted(f"sync {name}" for name in written)
    assert (rename, after) == (f"rename {path.name}", "sync .")


@pytest.mark.parametrize("out", [None, "a/b/run"])
def test_all_names_of_a_run_are_on_the_disk(out, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    order = DiskOrder(monkeypatch)
    RunFolder.create(out, settings("addition"))
    folders = [".", "runs"] if out is None else [".", "a", "a/b"]
    assert [event for event in order.of(tmp_path) if "run/" not in event][: len(folders)] == [
        f"sync {folder}" for folder in folders
    ]


def test_a_folder_above_that_may_not_be_read(settings, tmp_path, monkeypatch):
    """What is there already needs no sync; root may read anything, so the refusal is acted."""
    (tmp_path / "run").mkdir()
    real = os.open

    def refusing(path, *arguments, **options):
        if str(path) == str(tmp_path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    RunFolder.create(tmp_path / "run", settings("addition"))


def test_a_checkpoint_of_a_later_version_stays(stopped):
    """It is no damage, which would be removed."""
    run, _ = stopped
    newest = checkpoints(run)[0]
    (newest / "manifest.json").write_text('{"format": 2, "entries": []}')
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(
        training.CheckpointError, match=re.escape(f"'{newest}' must be of format 1")
    ):
        training.resume(run)
    before.pop(run / ".lock")
    assert before == {path: path.read_bytes() for path in before}


def test_a_removal_that_is_cut_short_leaves_no_half(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path / "checkpoints", 3)
    checkpoint = store.write(7, {"state.json": lambda path: path.write_text("content")})

    def killed(path):
        (path / "state.json").unlink()
        raise Stop

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Stop):
        store.remove(checkpoint)
    assert store.all() == []


def test_seconds_between_checkpoints(settings, tmp_path, monkeypatch):
    """By a clock on which a step takes a second and all else no time."""
    clock = StopAt()
    now = SimpleNamespace(perf_counter=lambda: float(len(clock.steps)))
    monkeypatch.setattr("mlx_tlstm.training.disk.time", now)
    config = settings("addition", samples=32, checkpoint_seconds=3, keep_checkpoints=9)
    training.fit(config, tmp_path / "run", [clock])
    assert clock.steps == list(range(1, 9))
    assert [int(path.name[-9:]) for path in checkpoints(tmp_path / "run")] == [6, 3, 0]


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": damage_flip,
    "torn": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}
FILES = ("weights", "optimizer", "carried", "best", "last")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("weights.safetensors", damage) for damage in DAMAGES),
        *(("manifest.json", damage) for damage in ("torn", "missing", "folder")),
        ("state.json", "flipped"),
    ],
)
def test_damaged_checkpoint(name, damage, stopped):
    run, expected = stopped
    newest, before, _ = checkpoints(run)
    DAMAGES[damage](newest / name)
    last = StopAt()
    training.resume(run, [last])
    assert re.fullmatch(
        rf"checkpoint {newest} is damaged: .*{name}.*; going back to {before.name}", last.notes[0]
    )
    assert last.notes[1:] == ["Going on after 24 samples"]
    assert last.steps == list(range(7, 13))
    # The damaged one is gone: its number is given again, and it takes no sound one's place.
    assert [path.name[:6] for path in checkpoints(run)] == ["000004", "000003", "000002"]
    assert outcome(run) == expected


@pytest.mark.parametrize("name", [f"{name}.safetensors" for name in FILES] + ["metrics.jsonl"])
def test_every_file_is_checked(name, stopped):
    run, expected = stopped
    damage_flip(checkpoints(run)[0] / name)
    damage_flip(checkpoints(run)[1] / name)
    last = StopAt()
    training.resume(run, [last])
    assert len(last.notes) == 3
    assert last.steps == list(range(4, 13))
    assert outcome(run) == expected


@pytest.mark.parametrize(
    "manifest",
    [
        b"[]",
        b"null",
        b"{}",
        b'{"format": 0, "files": {}}',
        b'{"format": 1, "files": []}',
        b'{"format": 1, "files": {"state.json": 3}}',
        b'{"format": 1, "files": {"../../config.json": {"bytes": 1, "sha256": ""}}}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_damaged_manifest(manifest, stopped):
    run, _ = stopped
    newest = checkpoints(run)[0]
    (newest / "manifest.json").write_bytes(manifest)
    last = StopAt()
    training.resume(run, [last])
    assert last.notes[0].startswith(f"checkpoint {newest} is damaged: ")
    assert last.steps[0] == 7


def test_no_whole_checkpoint(stopped):
    run, _ = stopped
    for path in checkpoints(run):
        damage_flip(path / "weights.safetensors")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(training.CheckpointError, match=r"no checkpoint is whole: .*; .*; .*") as c:
        training.resume(run)
    assert all(path.name in str(c.value) for path in checkpoints(run))
    before.pop(run / ".lock")
    assert before == {path: path.read_bytes() for path in before}


def test_checkpoints_that_are_gone(stopped):
    """Its records would be lost if the run began anew."""
    run, _ = stopped
    shutil.rmtree(run / "checkpoints")
    metrics = (run / "metrics.jsonl").read_text()
    with pytest.raises(training.CheckpointError, match=r"holds .*metrics\.jsonl and none"):
        training.resume(run)
    assert (run / "metrics.jsonl").read_text() == metrics


def test_the_run_s_own_files_do_not_matter(stopped):
    """Records and weights after the checkpoint are cut, torn ones too."""
    run, expected = stopped
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"samples": 44, "st')
    (run / "best" / "model.safetensors").write_bytes(b"torn")
    (run / "last" / "model.safetensors").unlink()
    training.resume(run)
    assert outcome(run) == expected


def test_leftovers_are_removed(stopped):
    run, expected = stopped
    half = run / "checkpoints" / ".writing-000004-step-000000012"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    for name in ("test.json", "best/model.safetensors", "last/config.json"):
        path = run / name
        path.with_name(f".writing-{path.name}").write_bytes(b"half")
    (run / ".writing-77-export" / "part").mkdir(parents=True)
    (run / "checkpoints" / ".writing-x").write_bytes(b"half")
    (run / "last" / ".writing-link").symlink_to(run / "checkpoints")
    training.resume(run)
    assert outcome(run) == expected
    assert not list(run.rglob(".writing-*"))


def _read(path):
    with path.open("rb") as file:
        return file.read()


class FullDisk:
    """Stands in for ``mx.save_safetensors``: after ``room`` files the disk is full."""

    def __init__(self, room):
        self._room, self._save = room, mx.save_safetensors

    def __call__(self, file, *content):
        if self._room == 0:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        self._room -= 1
        self._save(file, *content)


@pytest.mark.parametrize("room", [0, 1, 2, 3, 8, 13])
def test_full_disk(room, template, settings, tmp_path, monkeypatch):
    """At any file: an error that names it, nothing half written, and the run can go on."""
    config, run = settings("wikipedia", **OFTEN), tmp_path / "run"
    monkeypatch.setattr(mx, "save_safetensors", FullDisk(room))
    files = r"checkpoints/\d{6}-step-\d{9}|(best|last)/model\.safetensors"
    with pytest.raises(OSError, match=rf"No space left on device: '.*/run/({files})'"):
        training.fit(config, run)
    monkeypatch.undo()
    assert not list(run.rglob(".writing-*"))
    for checkpoint in CheckpointStore(run / "checkpoints", 3).all():
        checkpoint.verify()
    training.resume(run)
    assert outcome(run) == outcome(template / "whole")


@contextlib.contextmanager
def small_files():
    """No file may have more than 4,000 bytes: the system's own error, as of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_errors_name_no_temporary_file(settings, tmp_path):
    config = settings("addition", **OFTEN)
    with pytest.raises(OSError, match="File too large") as of_run, small_files():
        training.fit(config, tmp_path / "run")
    model = training.build_model(config, make_task(config))
    with pytest.raises(OSError, match="File too large") as of_model, small_files():
        model.save(tmp_path / "model")
    assert of_model.value.filename == str(tmp_path / "model")
    assert of_run.value.filename.startswith(str(tmp_path / "run" / "checkpoints" / "000000-step"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_full_disk_of_a_real_file_system(settings, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        config, run = settings("addition", keep_checkpoints=20, **OFTEN), disk / "run"
        with pytest.raises(OSError, match=r"No space left on device: '.*run"):
            training.fit(config, run)
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        training.resume(run)
        training.fit(config, tmp_path / "whole")
        assert outcome(run) == outcome(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors"])
def test_what_may_not_be_read_is_not_damaged(name, stopped, monkeypatch):
    """It stays; root may read anything, so the system's refusal is acted."""
    run, expected = stopped
    newest = checkpoints(run)[0]
    path_open = type(run).open

    def refuse(path, *arguments, **settings):
        if path == newest / name:
            raise PermissionError(13, "Permission denied", str(path))
        return path_open(path, *arguments, **settings)

    monkeypatch.setattr(type(run), "open", refuse)
    monkeypatch.setattr(type(run), "read_bytes", _read)
    with pytest.raises(PermissionError, match=name):
        training.resume(run)
    monkeypatch.undo()
    last = StopAt()
    training.resume(run, [last])
    assert last.steps[0] == 10
    assert outcome(run) == expected


@pytest.mark.parametrize("call", ["mkdir", "rename", "fsync"])
def test_unwritable_folder(call, settings, tmp_path, monkeypatch):
    """Root may write anywhere, so the system's refusal is acted."""
    config, run = settings("addition", **OFTEN), tmp_path / "run"
    with pytest.raises(Stop):
        training.fit(config, run, [StopAt(8)])
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*.*")}

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    class Refuse(training.Callback):
        def on_start(self, trainer):
            monkeypatch.setattr(os, call, refuse)

    with pytest.raises(PermissionError, match=r"Permission denied"):
        training.resume(run, [Refuse()])
    monkeypatch.undo()
    assert before == {path: path.read_bytes() for path in (run / "checkpoints").rglob("*.*")}
    training.resume(run)
    training.fit(config, tmp_path / "whole")
    assert outcome(run) == outcome(tmp_path / "whole")


def test_weights_that_are_not_finite_are_not_kept(settings, tmp_path):
    config = settings("addition", **{**OFTEN, "checkpoint_every": 1})

    class Spoil(training.Callback):
        def on_step(self, trainer, report):
            if trainer.step == 3:
                trainer.weights["readout"]["bias"] = mx.full((11,), mx.inf)
                trainer.model.update(trainer.weights)

    with pytest.raises(training.NonFiniteError, match="at step 4"):
        training.fit(config, tmp_path / "run", [Spoil()])
    assert [int(path.name[-9:]) for path in checkpoints(tmp_path / "run")] == [2, 1, 0]


def test_only_json_and_safetensors(stopped):
    run, _ = stopped
    endings = {path.suffix for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert endings == {".json", ".jsonl", ".safetensors"}
    assert RunFolder.open(run).ended is False

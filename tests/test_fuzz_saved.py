"""Damaged models and checkpoints: refused with a clear error of our own, or without effect."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from fuzzing import fuzzed, refused_clearly
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from tiny_tasks import Stop, StopAt, tiny_settings, write_images, write_text

import mlx_tlstm
from mlx_tlstm import SequenceModel, make_layer, training

#: What is done to a file's bytes, where, and with what.
DAMAGE = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "replace", "remove"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=12),
)


def damage(path: Path, kind: str, place: float, content: bytes) -> None:
    raw = bytearray(path.read_bytes())
    at = int(place * len(raw))
    if kind == "flip":
        raw[at] ^= content[0] or 1
    elif kind == "cut":
        raw = raw[:at]
    elif kind == "insert":
        raw[at:at] = content
    elif kind == "replace":
        raw = content
    else:
        path.unlink()
        return
    path.write_bytes(raw)


@functools.cache
def saved_model() -> tuple[SequenceModel, Path]:
    mx.random.seed(0)
    model = SequenceModel(make_layer("2d-tlstm+cn", 3, 4, 2), 5)
    folder = Path(tempfile.mkdtemp())
    model.save(folder / "model")
    return model, folder / "model"


@fuzzed(st.tuples(st.sampled_from(["config.json", "model.safetensors"]), DAMAGE), few=80, many=2000)
def test_models(case: tuple[str, tuple[str, float, bytes]]) -> None:
    name, change = case
    model, source = saved_model()
    with tempfile.TemporaryDirectory() as folder, refused_clearly():
        path = shutil.copytree(source, Path(folder, "model"))
        damage(path / name, *change)
        loaded = mlx_tlstm.load(path)
        # A bit of a weight may have flipped; sizes, names and types cannot have changed.
        for (key, mine), (other, theirs) in zip(
            tree_flatten(loaded.parameters()), tree_flatten(model.parameters()), strict=True
        ):
            assert (key, mine.shape, mine.dtype) == (other, theirs.shape, theirs.dtype)


@functools.cache
def stopped_run() -> tuple[Path, bytes]:
    """A run with several checkpoints that has not ended, and the weights it would end with."""
    folder = Path(tempfile.mkdtemp())
    images = folder / "images"
    images.mkdir()
    settings = tiny_settings(write_text(folder / "text"), write_images(images))
    config = settings("addition", checkpoint_every=1)
    training.fit(config, folder / "whole")
    with contextlib.suppress(Stop):
        training.fit(config, folder / "run", [StopAt(5)])
    return folder / "run", (folder / "whole" / "last" / "model.safetensors").read_bytes()


@fuzzed(st.tuples(st.integers(0, 30), st.booleans(), DAMAGE), few=12, many=400)
def test_checkpoints(case: tuple[int, bool, tuple[str, float, bytes]]) -> None:
    number, newest, change = case
    source, weights = stopped_run()
    with tempfile.TemporaryDirectory() as folder, refused_clearly((training.CheckpointError,)):
        run = shutil.copytree(source, Path(folder, "run"))
        checkpoints = sorted((run / "checkpoints").iterdir())
        chosen = checkpoints[-1] if newest else checkpoints[number % len(checkpoints)]
        files = sorted(path for path in chosen.rglob("*") if path.is_file())
        damage(files[number % len(files)], *change)
        training.resume(run)
        assert (run / "last" / "model.safetensors").read_bytes() == weights
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records] == sorted({r["step"] for r in records})
        assert np.isfinite([record["loss"] for record in records]).all()

"""Random bad input: each is refused with a clear error of our own, or it works.

Hundreds of cases run by default, ten thousand with -m slow.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from fuzzing import fuzzed, refused_clearly
from hypothesis import strategies as st

from mlx_tlstm import TLSTM, TRNN, VARIANTS, make_layer, training
from mlx_tlstm.commands.main import main
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks import TASKS, make_task
from mlx_tlstm.tasks.mnist_files import load_mnist

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63, 10**30]),
    st.floats(width=32),
    st.text(max_size=6),
    st.lists(st.integers(-1, 3), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)

TINY = TrainingConfig(
    task="addition",
    variant="2d-tlstm",
    depth=2,
    hidden_size=4,
    length=2,
    batch_size=3,
    samples=6,
    eval_every=3,
)
FIELDS = [field.name for field in dataclasses.fields(TrainingConfig)]
#: Fields that grow the work without making the input any worse.
SMALL = {"samples", "epochs", "eval_every", "seed"}


def changes(names: list[str]) -> st.SearchStrategy:
    return st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3)


@fuzzed(changes(FIELDS), few=60, many=2500)
def test_configurations(changed: dict[str, Any]) -> None:
    with refused_clearly():
        config = TINY.replace(**changed)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "config.json")
            config.save(path)
            assert TrainingConfig.load(path) == config


@fuzzed(
    st.one_of(
        st.binary(max_size=40),
        st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3)).map(
            lambda value: json.dumps(value).encode()
        ),
        st.tuples(changes(FIELDS), st.sets(st.sampled_from(FIELDS), max_size=2)).map(
            lambda pair: json.dumps(
                {
                    name: value
                    for name, value in {**dataclasses.asdict(TINY), **pair[0]}.items()
                    if name not in pair[1]
                }
            ).encode()
        ),
    ),
    few=80,
    many=2500,
)
def test_config_files(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, refused_clearly():
        path = Path(folder, "config.json")
        path.write_bytes(content)
        assert isinstance(TrainingConfig.load(path), TrainingConfig)


@fuzzed(
    st.tuples(
        changes([name for name in FIELDS if name not in SMALL]), st.sampled_from(sorted(TASKS))
    ),
    few=40,
    many=1000,
)
def test_runs(case: tuple[dict[str, Any], str]) -> None:
    changed, task = case
    with tempfile.TemporaryDirectory() as folder, refused_clearly():
        text = Path(folder, "text")
        text.write_bytes(bytes(range(65, 91)) * 20)
        # None would download.
        data = str(text) if changed.get("data") is None else changed["data"]
        config = TINY.replace(**{"task": task, **changed, "data": data})
        trainer, _ = training.prepare(config, Path(folder, "run"))
        report = trainer.train_step()
        assert math.isfinite(report.loss)


@fuzzed(
    st.tuples(
        st.sampled_from([TLSTM, TRNN, make_layer]),
        st.lists(VALUES, min_size=3, max_size=6),
        st.sampled_from([*VARIANTS, "gru", 3]),
    ),
    few=80,
    many=2000,
)
def test_layers(case: tuple[Callable, list, Any]) -> None:
    build, arguments, variant = case
    # What is refused for its size alone is tested with the memory it would take.
    arguments = [7 if isinstance(a, int) and a > 100 else a for a in arguments]
    if build is make_layer:
        arguments = [variant, *arguments[:4]]
    with refused_clearly():
        layer = build(*arguments)
        y, _ = layer(mx.zeros((2, 3, layer.cell.input_size)))
        assert y.shape == (2, 3, layer.cell.hidden_size)


@fuzzed(st.tuples(st.binary(max_size=120), st.integers(1, 4), st.integers(1, 6)), few=40, many=1000)
def test_text_files(case: tuple[bytes, int, int]) -> None:
    content, batch_size, length = case
    with tempfile.TemporaryDirectory() as folder, refused_clearly():
        path = Path(folder, "text")
        path.write_bytes(content)
        config = TINY.replace(
            task="wikipedia", data=str(path), batch_size=batch_size, length=length
        )
        task = make_task(config)
        batch = task.train_batch(0)
        assert batch.inputs.shape == batch.targets.shape == (batch_size, length)
        predicted = sum(batch.targets.size for batch in task.eval_batches("test"))
        assert predicted == len(content) - len(content) * 95 // 100


def idx(magic: int, *shape: int) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + bytes(math.prod(shape))


@fuzzed(
    st.tuples(
        st.sampled_from(["train-images-idx3", "train-labels-idx1", "t10k-images-idx3"]),
        st.sampled_from(["replace", "cut", "flip", "extend"]),
        st.binary(min_size=1, max_size=40),
        st.integers(0, 2000),
    ),
    few=60,
    many=1000,
)
def test_mnist_files(case: tuple[str, str, bytes, int]) -> None:
    name, kind, content, place = case
    with tempfile.TemporaryDirectory() as folder, refused_clearly():
        for prefix in ("train", "t10k"):
            images = Path(folder, f"{prefix}-images-idx3-ubyte")
            images.write_bytes(idx(2051, 2, 28, 28))
            Path(folder, f"{prefix}-labels-idx1-ubyte").write_bytes(idx(2049, 2))
        path = Path(folder, f"{name}-ubyte")
        raw = bytearray(path.read_bytes())
        place %= len(raw)
        if kind == "replace":
            raw = content
        elif kind == "cut":
            raw = raw[:place]
        elif kind == "flip":
            raw[place] ^= content[0] or 1
        else:
            raw += content
        path.write_bytes(raw)
        train, test = load_mnist(folder)
        assert train.images.shape == test.images.shape == (2, 28, 28)


OPTIONS = [option for command in (main.commands["train"],) for option in command.params]
NAMES = [name for option in OPTIONS for name in option.opts if name.startswith("--")]
WORDS = st.one_of(
    st.sampled_from([*NAMES, *TASKS, *VARIANTS, "--help", "--", "-x"]),
    st.integers(-2, 9).map(str),
    st.sampled_from(["nan", "inf", "1e400", "0x10", "", "run", ".", "~", "~x"]),
    st.text(max_size=5),
)


@fuzzed(st.lists(WORDS, max_size=6), few=60, many=1500)
def test_command_lines(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        # Whatever is accepted would train for long.
        monkeypatch.setattr("mlx_tlstm.commands.training.training.prepare", _accept)
        result = CliRunner().invoke(main, ["train", *words])
    assert result.exception is None or isinstance(result.exception, (SystemExit, AcceptedError))
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output


class AcceptedError(Exception):
    """A command line was understood, and every setting valid."""


def _accept(config: TrainingConfig, out: Path | None, *_: Any, **__: Any) -> None:
    assert TrainingConfig(**dataclasses.asdict(config)) == config
    assert out is None or isinstance(out, Path)
    raise AcceptedError

"""The language-modelling task on small made files."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_tlstm.tasks import Wikipedia, make_task, wikipedia


def _write(path, size, values=97):
    """A file of ``size`` bytes in which neighbours tell their place: 1, 2, 3, … with jumps."""
    numbers = np.random.default_rng(size).integers(1, 1 + values, size)
    path.write_bytes(numbers.astype(np.uint8).tobytes())
    return path.read_bytes()


def _task(path, **changes):
    settings = {"data": str(path), "batch_size": 3, "length": 7, **changes}
    return make_task(Wikipedia.quick().replace(**settings))


def _bytes(task, symbols):
    return bytes(task.symbols[symbol] for symbol in symbols.ravel())


@pytest.mark.parametrize("size", [400, 1000, 1013, 1999])
def test_training_streams_go_on(tmp_path, size):
    raw = _write(tmp_path / "text", size)
    task = _task(tmp_path / "text")
    train_end = size * 90 // 100
    chunks = (train_end - 1) // 3 // 7
    assert task.samples_per_epoch == 3 * chunks
    assert task.train_steps == chunks
    stride = (train_end - 1) // 3
    epoch = [task.train_batch(step) for step in range(chunks)]
    assert [batch.fresh for batch in epoch] == [True] + [False] * (chunks - 1)
    for batch in epoch:
        assert batch.inputs.shape == batch.targets.shape == (3, 7)
        assert batch.inputs.dtype == batch.targets.dtype == np.int32
    inputs = np.concatenate([batch.inputs for batch in epoch], axis=1)
    targets = np.concatenate([batch.targets for batch in epoch], axis=1)
    for stream in range(3):
        start = stream * stride
        assert _bytes(task, inputs[stream]) == raw[start : start + 7 * chunks]
        assert _bytes(task, targets[stream]) == raw[start + 1 : start + 1 + 7 * chunks]
    wrapped = task.train_batch(chunks)
    assert wrapped.fresh
    np.testing.assert_array_equal(wrapped.inputs, epoch[0].inputs)


@pytest.mark.parametrize("size", [400, 1000, 1013, 1999, 2347])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_predicts_each_byte_once(tmp_path, size, split):
    raw = _write(tmp_path / "text", size)
    task = _task(tmp_path / "text")
    start, end = task.splits[split]
    assert (start, end) == {
        "validation": (size * 90 // 100, size * 95 // 100),
        "test": (size * 95 // 100, size),
    }[split]
    streams: list[list[tuple[bytes, bytes]]] = []
    for batch in task.eval_batches(split):
        assert batch.inputs.shape[1] <= 7
        if batch.fresh:
            first = len(streams)
            streams += [[] for _ in batch.inputs]
        for row, pair in enumerate(zip(batch.inputs, batch.targets, strict=True)):
            streams[first + row].append(tuple(_bytes(task, part) for part in pair))
    assert len(streams) == task.eval_streams + bool((end - start) % task.eval_streams)
    position = start
    for stream in streams:
        inputs, targets = (b"".join(parts) for parts in zip(*stream, strict=True))
        assert targets == raw[position : position + len(targets)]
        assert inputs == raw[position - 1 : position - 1 + len(inputs)]
        position += len(targets)
    assert position == end


def test_evaluation_uses_fewer_streams_on_a_short_split(tmp_path):
    _write(tmp_path / "text", 400)
    assert _task(tmp_path / "text").eval_streams == 20 // 7
    assert _task(tmp_path / "text", length=2).eval_streams == 3
    assert _task(tmp_path / "text", length=50).eval_streams == 1


def test_symbols_are_the_bytes_of_the_whole_file(tmp_path):
    (tmp_path / "text").write_bytes(b"banana \xff" * 60 + b"\x01")
    task = _task(tmp_path / "text")
    assert task.symbols == b"\x01 abn\xff"
    assert task.input_size == task.output_size == 6
    assert task.decode([4, 2, 3, 1, 2]) == "nab a"
    assert task.decode([2, 5]) == "a\ufffd"


@pytest.mark.parametrize(
    ("batch_size", "length", "needed"), [(3, 7, 25), (1, 1, 20), (32, 50, 1779)]
)
def test_smallest_file(tmp_path, batch_size, length, needed):
    path = tmp_path / "text"
    path.write_bytes(b"x" * needed)
    task = _task(path, batch_size=batch_size, length=length)
    assert task.train_batch(0).inputs.shape == (batch_size, length)
    assert sum(batch.targets.size for batch in task.eval_batches("validation")) > 0
    path.write_bytes(b"x" * (needed - 1))
    message = rf"at least {needed:,} bytes for batch_size {batch_size} × length {length} but"
    with pytest.raises(ValueError, match=message):
        _task(path, batch_size=batch_size, length=length)


def test_more_than_enwik8_holds(monkeypatch):
    monkeypatch.setattr(wikipedia, "fetch_enwik8", lambda: b"x" * 10_000)
    config = Wikipedia.quick().replace(batch_size=1000, length=100)
    with pytest.raises(ValueError, match=r"at least 111,113 bytes .* 'enwik8' holds 10,000; use"):
        make_task(config)


def test_wrong_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'data' must be a file but .*absent' is missing"):
        _task(tmp_path / "absent")
    with pytest.raises(ValueError, match="'data' must be a file but got"):
        _task(tmp_path)


def test_unknown_split(tmp_path):
    _write(tmp_path / "text", 400)
    with pytest.raises(ValueError, match="'split' must be one of"):
        next(_task(tmp_path / "text").eval_batches("train"))

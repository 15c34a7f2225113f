"""The language-modelling task on small made files, and its download."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import zipfile

import datasets
import numpy as np
import pytest

from mlx_tlstm.tasks import DataUnavailableError, Wikipedia, downloads, make_task


def _write(path, size, values=97):
    """A file of ``size`` bytes in which neighbours tell their place: 0, 1, 2, … with jumps."""
    numbers = np.random.default_rng(size).integers(0, values, size)
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
    (tmp_path / "text").write_bytes(b"banana \xff" * 60 + b"\x00")
    task = _task(tmp_path / "text")
    assert task.symbols == b"\x00 abn\xff"
    assert task.input_size == task.output_size == 6
    assert task.decode(task.encode("nab a")) == "nab a"
    assert task.decode(task.encode(b"a\xff")) == "a\ufffd"
    with pytest.raises(ValueError, match=r"'text' must be made of bytes .* got b'xz'"):
        task.encode("zax")


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


def test_wrong_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'data' must be a file but .*absent' is missing"):
        _task(tmp_path / "absent")
    with pytest.raises(ValueError, match="'data' must be a file but got"):
        _task(tmp_path)


def test_unknown_split(tmp_path):
    _write(tmp_path / "text", 400)
    with pytest.raises(ValueError, match="'split' must be one of"):
        next(_task(tmp_path / "text").eval_batches("train"))


def _archive(tmp_path, text, member="enwik8"):
    path = tmp_path / "enwik8.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, text)
    return path


def _download_from(monkeypatch, path, text):
    """Have the download find ``path``, and the checks expect ``text``."""
    monkeypatch.setattr(datasets.DownloadManager, "download", lambda self, url: str(path))
    monkeypatch.setattr(downloads, "ENWIK8_BYTES", len(text))
    monkeypatch.setattr(downloads, "ENWIK8_SHA1", hashlib.sha1(text).hexdigest())


def test_download_is_checked_and_kept(tmp_path, monkeypatch):
    text = b"<mediawiki>" * 200
    path = _archive(tmp_path, text)
    _download_from(monkeypatch, path, text)
    task = _task(None, data=None)
    assert task.splits["test"] == (2090, 2200)
    assert path.exists()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Keep the test's output quiet."""


def test_real_download_manager_downloads_once(tmp_path, monkeypatch):
    """Over HTTP on loopback; the second call, with the server gone, finds the cached file."""
    text = b"<mediawiki>" * 200
    (tmp_path / "site").mkdir()
    _archive(tmp_path / "site", text)
    handler = functools.partial(QuietHandler, directory=tmp_path / "site")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    url = f"http://127.0.0.1:{server.server_address[1]}/enwik8.zip"
    monkeypatch.setattr(downloads, "ENWIK8_URL", url)
    monkeypatch.setattr(downloads, "ENWIK8_BYTES", len(text))
    monkeypatch.setattr(downloads, "ENWIK8_SHA1", hashlib.sha1(text).hexdigest())
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache")
    try:
        assert downloads.fetch_enwik8() == text
    finally:
        server.shutdown()
        server.server_close()
    assert downloads.fetch_enwik8() == text
    monkeypatch.setattr(downloads, "ENWIK8_SHA1", "0" * 40)
    with pytest.raises(DataUnavailableError, match="the file was deleted"):
        downloads.fetch_enwik8()
    with pytest.raises(DataUnavailableError, match="cannot download http"):
        downloads.fetch_enwik8()


@pytest.mark.parametrize("fault", ["byte", "length", "member", "html"])
def test_wrong_download_is_refused_and_deleted(tmp_path, monkeypatch, fault):
    text = b"<mediawiki>" * 200
    found = {"byte": b"[" + text[1:], "length": text[:-1]}.get(fault, text)
    path = _archive(tmp_path, found, member="other" if fault == "member" else "enwik8")
    if fault == "html":
        path.write_bytes(b"<html>please log in</html>")
    _download_from(monkeypatch, path, text)
    with pytest.raises(DataUnavailableError) as caught:
        _task(None, data=None)
    message = str(caught.value)
    assert f"must hold 2,200 bytes with SHA-1 {hashlib.sha1(text).hexdigest()}" in message
    assert {
        "byte": f"gave 2,200 bytes with SHA-1 {hashlib.sha1(found).hexdigest()}",
        "length": "gave 2,199 bytes",
        "member": "no readable archive (KeyError",
        "html": "no readable archive (BadZipFile",
    }[fault] in message
    assert not path.exists()


def test_offline_message(monkeypatch):
    def fail(self, url):
        raise FileNotFoundError(url)

    monkeypatch.setattr(datasets.DownloadManager, "download", fail)
    with pytest.raises(
        DataUnavailableError, match=r"cannot download http.*enwik8\.zip .*--data PATH"
    ):
        _task(None, data=None)

"""Downloads: what came is checked, nothing half is left, and several processes share it.

Servers are stand-ins on loopback; each process has a Hugging Face cache of the test's own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile

import datasets
import numpy as np
import pytest
import test_data_hub
from processes import environment
from servers import Handler, Server

from mlx_tlstm.tasks import DataUnavailableError, Wikipedia, downloads, make_task

TEXT = b"<mediawiki>" * 200
hub = test_data_hub.hub


def _archive(text=TEXT, member="enwik8"):
    """The bytes of a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, text)
    return buffer.getvalue()


class HalvingHandler(Handler):
    """Serves ``server.content``, cut or held up half-way where the server says so."""

    def do_HEAD(self):
        self._start()

    def do_GET(self):
        server = self.server
        server.downloads += 1
        self._start()
        half = len(server.content) // 2
        self.wfile.write(server.content[:half])
        server.reached_half.set()
        if server.cut:
            self.close_connection = True
            return
        server.may_go_on.wait(60)
        self.wfile.write(server.content[half:])

    def _start(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()


@pytest.fixture
def site():
    server = Server(HalvingHandler, content=_archive(), downloads=0, cut=False)
    server.reached_half, server.may_go_on = threading.Event(), threading.Event()
    server.may_go_on.set()
    yield server
    server.may_go_on.set()
    server.close()


def _url(server):
    return f"{server.endpoint}/enwik8.zip"


@pytest.fixture
def cache(tmp_path, site, monkeypatch):
    """The folder of downloads, in this process, where the stand-in counts as enwik8's site."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "ENWIK8_URL", _url(site))
    monkeypatch.setattr(downloads, "ENWIK8_BYTES", len(TEXT))
    monkeypatch.setattr(downloads, "ENWIK8_SHA1", hashlib.sha1(TEXT).hexdigest())
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", folder)
    return folder


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_is_kept(cache, site):
    assert downloads.fetch_enwik8() == TEXT
    assert downloads.fetch_enwik8() == TEXT
    assert site.downloads == 1
    assert _names(cache) == ["enwik8.zip", "enwik8.zip.lock"]
    settings = {"data": None, "batch_size": 3, "length": 7}
    task = make_task(Wikipedia.quick().replace(**settings))
    assert task.splits["test"] == (2090, 2200)


@pytest.mark.parametrize("fault", ["byte", "length", "member", "html", "cut"])
def test_wrong_download_is_refused_and_not_stored(cache, site, fault):
    found = {"byte": b"[" + TEXT[1:], "length": TEXT[:-1]}.get(fault, TEXT)
    site.content = _archive(found, member="other" if fault == "member" else "enwik8")
    if fault == "html":
        site.content = b"<html>please log in</html>"
    site.cut = fault == "cut"
    with pytest.raises(DataUnavailableError) as caught:
        downloads.fetch_enwik8()
    message = str(caught.value)
    if fault == "cut":
        assert "[Wikipedia] cannot download http://127.0.0.1" in message
    else:
        assert f"must hold 2,200 bytes with SHA-1 {hashlib.sha1(TEXT).hexdigest()}" in message
        assert {
            "byte": f"gave 2,200 bytes with SHA-1 {hashlib.sha1(found).hexdigest()}",
            "length": "gave 2,199 bytes",
            "member": "no readable archive (KeyError",
            "html": "no readable archive (BadZipFile",
        }[fault] in message
    assert "--data PATH" in message
    assert _names(cache) == ["enwik8.zip.lock"]
    site.content, site.cut = _archive(), False
    assert downloads.fetch_enwik8() == TEXT


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"", lambda raw: raw[::-1]])
def test_damaged_stored_file_is_downloaded_anew(cache, site, damage):
    downloads.fetch_enwik8()
    stored = cache / "enwik8.zip"
    stored.write_bytes(damage(stored.read_bytes()))
    assert downloads.fetch_enwik8() == TEXT
    assert site.downloads == 2
    assert stored.read_bytes() == site.content


def test_damaged_stored_file_offline(cache, site, monkeypatch):
    """It stays: it is the user's to look at, and no worse than none."""
    downloads.fetch_enwik8()
    (cache / "enwik8.zip").write_bytes(b"damaged")
    monkeypatch.setattr(downloads, "ENWIK8_URL", "http://127.0.0.1:9/enwik8.zip")
    with pytest.raises(DataUnavailableError, match=r"cannot download http.*enwik8\.zip .*--data"):
        downloads.fetch_enwik8()
    assert _names(cache) == ["enwik8.zip", "enwik8.zip.lock"]


def test_full_disk(cache, site, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device", str(source))

    with monkeypatch.context() as patches:
        patches.setattr(os, "replace", fail)
        with pytest.raises(DataUnavailableError, match=r"cannot be stored in .*No space left") as e:
            downloads.fetch_enwik8()
    assert str(cache) in str(e.value)
    assert _names(cache) == ["enwik8.zip.lock"]
    assert downloads.fetch_enwik8() == TEXT


SCRIPT = """
import hashlib, json, sys
from mlx_tlstm.tasks import downloads
downloads.ENWIK8_URL, text_size, digest = json.loads(sys.argv[1])
downloads.ENWIK8_BYTES, downloads.ENWIK8_SHA1 = text_size, digest
print("ready", flush=True)
assert hashlib.sha1(downloads.fetch_enwik8()).hexdigest() == digest
"""


def _start(tmp_path, script, *arguments, **changes):
    """A fresh process with a cache of its own: the hub's client reads its settings at import."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment(HF_HOME=str(tmp_path / "home"), **changes),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _start_download(tmp_path, site):
    arguments = json.dumps([_url(site), len(TEXT), hashlib.sha1(TEXT).hexdigest()])
    return _start(tmp_path, SCRIPT, arguments)


def _finish(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    return output


def test_two_processes_download_once(site, tmp_path):
    site.may_go_on.clear()
    first = _start_download(tmp_path, site)
    assert site.reached_half.wait(60)
    second = _start_download(tmp_path, site)
    assert second.stdout.readline() == "ready\n"  # from here on it can only wait for the first
    site.may_go_on.set()
    for process in (first, second):
        _finish(process)
    assert site.downloads == 1
    assert _names(tmp_path / "home" / "datasets" / "downloads") == ["enwik8.zip", "enwik8.zip.lock"]


def test_killed_download_is_cleared_away(site, tmp_path):
    site.may_go_on.clear()
    killed = _start_download(tmp_path, site)
    assert site.reached_half.wait(60)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    folder = tmp_path / "home" / "datasets" / "downloads"
    assert any(name.startswith(".writing-enwik8-") for name in _names(folder))
    (folder / ".writing-enwik8-file").write_text("half")
    site.may_go_on.set()
    _finish(_start_download(tmp_path, site))
    assert _names(folder) == ["enwik8.zip", "enwik8.zip.lock"]


MNIST_SCRIPT = """
import sys
import numpy as np
from mlx_tlstm.tasks import Mnist, make_task
print("ready", flush=True)
sys.stdin.readline()
task = make_task(Mnist.quick().replace(batch_size=4, data=sys.argv[2] or None))
batch = next(task.eval_batches("test"))
np.savez(sys.argv[1], inputs=batch.inputs, labels=batch.targets[:, -1])
"""


def _prepare_mnist_twice(tmp_path, data="", **environment):
    """Two processes let go at the same moment; what each read."""
    paths = [tmp_path / f"{number}.npz" for number in range(2)]
    processes = [_start(tmp_path, MNIST_SCRIPT, str(path), data, **environment) for path in paths]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _finish(process)
    return [dict(np.load(path)) for path in paths]


def _check_mnist(found, arrays):
    images, labels = arrays["test"]
    for arrays in found:
        np.testing.assert_array_equal(arrays["inputs"], images.astype(np.float32) / 255)
        np.testing.assert_array_equal(arrays["labels"], labels)


def _half_files(home):
    return [p for p in home.rglob("*") if "incomplete" in p.name and p.suffix != ".lock"]


def test_two_processes_prepare_mnist_from_the_hub(hub, tmp_path):
    found = _prepare_mnist_twice(tmp_path, HF_ENDPOINT=hub.endpoint, HF_HUB_DISABLE_XET="1")
    _check_mnist(found, hub.arrays)
    assert not _half_files(tmp_path / "home")


def test_two_processes_prepare_mnist_from_parquet(hub, tmp_path):
    folder = tmp_path / "files"
    for name, content in hub.files.items():
        if name.endswith(".parquet"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    found = _prepare_mnist_twice(tmp_path, data=str(folder))
    _check_mnist(found, hub.arrays)
    assert not _half_files(tmp_path / "home")


class CuttingHandler(test_data_hub.HubHandler):
    """Sends half of each parquet file and hangs up, until ``server.whole`` is set."""

    def send_file(self, name):
        content = self.server.files.get(name, b"")
        if self.server.whole or not name.endswith(".parquet") or self.command == "HEAD":
            super().send_file(name)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True


def test_cut_download_from_the_hub(hub, tmp_path):
    hub.RequestHandlerClass, hub.whole = CuttingHandler, False
    hubs = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    process = _start(tmp_path, test_data_hub.SCRIPT, str(tmp_path / "found.npz"), **hubs)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "DataUnavailableError: [Mnist] load_dataset" in errors.strip().splitlines()[-1]
    assert not _half_files(tmp_path / "home")
    hub.whole = True
    _finish(_start(tmp_path, test_data_hub.SCRIPT, str(tmp_path / "found.npz"), **hubs))
    with np.load(tmp_path / "found.npz") as found:
        _check_mnist([{"inputs": found["inputs"], "labels": found["labels"]}], hub.arrays)

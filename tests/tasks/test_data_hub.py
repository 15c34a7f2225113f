"""The verbatim ``load_dataset("ylecun/mnist")`` against a stand-in for the hub on loopback."""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import sys
import threading
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from data_sources import image_dataset
from processes import environment

REPOSITORY = "ylecun/mnist"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: mnist
  default: true
  data_files:
  - {split: train, path: mnist/train-*}
  - {split: test, path: mnist/test-*}
---
"""


class HubHandler(http.server.BaseHTTPRequestHandler):
    """The parts of the hub's interface that ``load_dataset`` uses, for one data set."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urlsplit(self.path).path
        api = f"/api/datasets/{REPOSITORY}"
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._json({"id": REPOSITORY, "sha": COMMIT, "private": False, "siblings": siblings})
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
            names = [name for name in self.server.files if name.startswith(folder)]
            folders = [] if folder else ["mnist"]
            entries = [{"type": "directory", "path": name, "oid": "0" * 40} for name in folders]
            self._json(entries + [self._entry(name) for name in names if folder or "/" not in name])
        else:
            name = path.removeprefix(f"/datasets/{REPOSITORY}/resolve/").partition("/")[2]
            self._file(name)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        is_json = self.headers["Content-Type"].startswith("application/json")
        paths = (json.loads(body) if is_json else parse_qs(body))["paths"]
        found = [self._entry(name) for name in paths if name in self.server.files]
        if "mnist" in paths:
            found.append({"type": "directory", "path": "mnist", "oid": "0" * 40})
        self._json(found)

    def _entry(self, name):
        content = self.server.files[name]
        digest = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": digest}

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, name):
        if name not in self.server.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        digest = self._entry(name)["oid"]
        self._send(200, self.server.files[name], {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})

    def _send(self, status, content, headers):
        self.server.asked.append((self.command, self.path))
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        """Keep the test's output quiet."""


@pytest.fixture
def hub(tmp_path):
    rng = np.random.default_rng(3)
    files, arrays = {"README.md": CARD.encode()}, {}
    for split, count in (("train", 24), ("test", 11)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count)
        arrays[split] = images, labels
        made = tmp_path / "made.parquet"
        image_dataset(images, labels).to_parquet(made)
        files[f"mnist/{split}-00000-of-00001.parquet"] = made.read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.files, server.asked, server.arrays = files, [], arrays
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


SCRIPT = """
import sys
import numpy as np
from mlx_tlstm.tasks import Mnist, make_task
task = make_task(Mnist.quick().replace(batch_size=4))
batch = next(task.eval_batches("test"))
np.savez(sys.argv[1], inputs=batch.inputs, labels=batch.targets[:, -1], size=task.samples_per_epoch)
"""


def _run(tmp_path, endpoint, **changes):
    """Build the task in a fresh process: the hub's address is read when the client is imported."""
    ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "found.npz")],
        env=environment(**ours, **changes),
        capture_output=True,
        text=True,
        timeout=120,
    )


def _check(hub, tmp_path, done):
    assert done.returncode == 0, done.stderr[-2000:] + str(hub.asked)
    images, labels = hub.arrays["test"]
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_array_equal(found["inputs"], images.astype(np.float32) / 255)
        np.testing.assert_array_equal(found["labels"], labels)
        assert found["size"] == 20
    (tmp_path / "found.npz").unlink()


def test_load_from_hub_then_from_its_cache(hub, tmp_path):
    endpoint = f"http://127.0.0.1:{hub.server_address[1]}"
    _check(hub, tmp_path, _run(tmp_path, endpoint))
    assert any(path.endswith("train-00000-of-00001.parquet") for _, path in hub.asked)
    hub.asked.clear()
    _check(hub, tmp_path, _run(tmp_path, endpoint, HF_HUB_OFFLINE="1"))
    assert not hub.asked


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_unreachable_hub(tmp_path, environment):
    done = _run(tmp_path, "http://127.0.0.1:9", **environment)
    assert done.returncode == 1
    last_line = done.stderr.strip().splitlines()[-1]
    for part in ("DataUnavailableError: [Mnist]", "http://127.0.0.1:9 does not answer", "--data"):
        assert part in last_line

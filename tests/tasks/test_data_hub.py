"""The verbatim ``load_dataset("ylecun/mnist")`` against a stand-in for the hub on loopback."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from data_sources import image_dataset
from processes import environment
from servers import Handler, Server

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


class HubHandler(Handler):
    """The parts of the hub's interface that ``load_dataset`` uses, for one data set."""

    def do_GET(self):
        path = urlsplit(self.path).path
        api = f"/api/datasets/{REPOSITORY}"
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self.send_json(
                {"id": REPOSITORY, "sha": COMMIT, "private": False, "siblings": siblings}
            )
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
            names = [name for name in self.server.files if name.startswith(folder)]
            folders = [] if folder else ["mnist"]
            entries = [{"type": "directory", "path": name, "oid": "0" * 40} for name in folders]
            self.send_json(
                entries + [self._entry(name) for name in names if folder or "/" not in name]
            )
        else:
            name = path.removeprefix(f"/datasets/{REPOSITORY}/resolve/").partition("/")[2]
            self.send_file(name)

    def do_POST(self):
        body = self.body().decode()
        is_json = self.headers["Content-Type"].startswith("application/json")
        paths = (json.loads(body) if is_json else parse_qs(body))["paths"]
        found = [self._entry(name) for name in paths if name in self.server.files]
        if "mnist" in paths:
            found.append({"type": "directory", "path": "mnist", "oid": "0" * 40})
        self.send_json(found)

    def _entry(self, name):
        content = self.server.files[name]
        digest = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": digest}

    def send_file(self, name):
        if name in self.server.files:
            digest = self._entry(name)["oid"]
            self.send(200, self.server.files[name], ETag=f'"{digest}"', X_Repo_Commit=COMMIT)
        else:
            self.send(404, X_Error_Code="EntryNotFound")


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
    server = Server(HubHandler, files=files, arrays=arrays)
    yield server
    server.close()


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
    _check(hub, tmp_path, _run(tmp_path, hub.endpoint))
    assert any(path.endswith("train-00000-of-00001.parquet") for _, path in hub.asked)
    hub.asked.clear()
    _check(hub, tmp_path, _run(tmp_path, hub.endpoint, HF_HUB_OFFLINE="1"))
    assert not hub.asked


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_unreachable_hub(tmp_path, environment):
    done = _run(tmp_path, "http://127.0.0.1:9", **environment)
    assert done.returncode == 1
    last_line = done.stderr.strip().splitlines()[-1]
    for part in ("DataUnavailableError: [Mnist]", "http://127.0.0.1:9 does not answer", "--data"):
        assert part in last_line

"""Where the checkout is; processes as a user starts them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: For PYTHONPATH: puts MLX on the CPU.
CHILDREN = ROOT / "tests" / "children"


def environment(**changes: str) -> dict[str, str]:
    """This process's, with the checkout's package and nothing that leads to the real hub."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and not name.lower().endswith("_proxy")
    }
    return inherited | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, CHILDREN)))} | changes


def wait_for_records(process: subprocess.Popen, run: Path, count: int) -> int:
    """Until a training, which goes on, has written so many records; how many there are."""
    metrics = run / "metrics.jsonl"
    while True:
        found = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if found >= count:
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)

"""Where the checkout is, and the environment of processes as a user starts them."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment(**changes: str) -> dict[str, str]:
    """This process's, with the checkout's package and nothing that leads to the real hub."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and not name.lower().endswith("_proxy")
    }
    return inherited | {"PYTHONPATH": str(ROOT)} | changes

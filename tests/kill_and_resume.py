"""A training process that kills itself at the n-th thing it does to its run folder.

As a program it trains into a folder, or goes on with the run there::

    python tests/kill_and_resume.py CONFIG RUN [KILL_AT]

It prints ``started`` when all is imported, and at the end how much it did to the folder. Before
number KILL_AT (from 1) it kills itself; where that is the writing of a file of arrays, the file is
left half written.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from processes import environment

#: Python's audit events of what is done to files, each with a path as the first argument.
EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}


def start(config: Path, run: Path, kill_at: int = 0) -> subprocess.Popen[str]:
    """Start the program and wait until all is imported."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(config), str(run), str(kill_at)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONUNBUFFERED="1"),
    )
    line = process.stdout.readline()
    if line != "started\n":
        raise RuntimeError(process.communicate()[1])
    return process


def outcome(run: Path) -> dict[str, Any]:
    """What a run came to, all but its times."""
    found: dict[str, Any] = {"test": json.loads((run / "test.json").read_text())}
    for name in ("metrics.jsonl", "events.jsonl"):
        lines = (run / name).read_text().splitlines() if (run / name).exists() else []
        found[name] = [{**json.loads(line), "seconds": None} for line in lines]
    for name in ("best", "last"):
        found[name] = (run / name / "model.safetensors").read_bytes()
        found[f"{name}'s layer"] = json.loads((run / name / "config.json").read_text())
        del found[f"{name}'s layer"]["metadata"]  # it has settings of how it was trained
    return found


def check_models(run: Path) -> None:
    """What a killed run has of models is whole: weights and figures of one evaluation, or none."""
    from mlx_tlstm import SequenceModel

    lines = (
        (run / "metrics.jsonl").read_bytes().split(b"\n")
        if (run / "metrics.jsonl").exists()
        else []
    )
    records = {record["samples"]: record for record in map(json.loads, lines[:-1])}
    for folder in (run / "best", run / "last"):
        if (folder / "model.safetensors").exists():
            metrics = SequenceModel.load(folder).metadata.metrics
            record = records[metrics["samples"]]
            names = metrics.keys() & record.keys()
            if metrics["split"] == record["split"]:
                assert {n: metrics[n] for n in names - {"loss"}} == {
                    n: record[n] for n in names - {"loss"}
                }
                assert metrics["loss"] == record["evaluation_loss"]


def main(config: str, run: str, kill_at: str) -> None:
    """The program."""
    import mlx_tlstm  # noqa: F401, I001 (OpenBLAS has to be loaded before MLX)
    import mlx.core as mx
    from mixed_cell import MIXED, NAME

    from mlx_tlstm import VARIANTS, training
    from mlx_tlstm.config import TrainingConfig

    VARIANTS[NAME] = MIXED
    mx.set_default_device(mx.cpu)
    done = 0
    save_safetensors = mx.save_safetensors

    def count() -> bool:
        """Whether the time has come."""
        nonlocal done
        done += 1
        return done == int(kill_at)

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS and str(arguments[0]).startswith(run) and count():
            kill()

    def save(file: Any, *content: Any) -> None:
        torn = count()
        save_safetensors(file, *content)
        if torn:
            file.flush()
            os.truncate(file.fileno(), file.tell() // 2)
            kill()

    mx.save_safetensors = save
    print("started")
    sys.addaudithook(hook)
    if (Path(run) / "config.json").exists():
        training.resume(run)
    else:
        training.fit(TrainingConfig.load(config), run)
    print(done)


if __name__ == "__main__":
    main(*sys.argv[1:])

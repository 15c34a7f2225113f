"""Time candidates side by side, and describe the machine they ran on."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_tlstm import blas
from mlx_tlstm.checks import require, require_integer

_REFERENCE_BLAS = "reference BLAS"


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one candidate took.

    Attributes:
        milliseconds: One entry per round.
        peak_bytes: Most MLX memory that a call used beyond what was in use before it.
    """

    milliseconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        """Median over the rounds, in milliseconds."""
        return statistics.median(self.milliseconds)

    @property
    def minimum(self) -> float:
        """Fastest round, in milliseconds."""
        return min(self.milliseconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile, in milliseconds; of one round, that round twice."""
        if len(self.milliseconds) == 1:
            return self.milliseconds * 2
        lower, _, upper = statistics.quantiles(self.milliseconds, n=4, method="inclusive")
        return lower, upper

    def ratio(self, other: Timing) -> float:
        """Median over the rounds of this time divided by ``other``'s in the same round.

        Raises:
            ValueError: The two were not timed in the same number of rounds.
        """
        rounds = len(self.milliseconds)
        require(len(other.milliseconds) == rounds, "Timing", "other", f"of {rounds} rounds", other)
        pairs = zip(self.milliseconds, other.milliseconds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)

    def as_dict(self) -> dict[str, Any]:
        """The rounds and their statistics, fit for JSON."""
        summary = {"median": self.median, "minimum": self.minimum, "quartiles": self.quartiles}
        return dataclasses.asdict(self) | summary


def measure(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 10,
    warmup: int = 2,
    seconds: float | None = None,
    pause: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time callables in interleaved rounds A B C A B C …, so that all meet the same slow moments.

    Args:
        candidates: Callables by name. Each returns only when its work is done: it calls
            ``mx.eval`` or its like inside.
        rounds: Timed calls of each.
        warmup: Untimed calls of each before, in the same order.
        seconds: Start no further round once the timed ones have taken so long together; the first
            always runs.
        pause: Seconds of sleep before each call, in which thread pools that spin after their last
            work (OpenMP's, OpenBLAS's) fall asleep and leave the cores to the next candidate.
        clock: Returns the time in seconds.

    Raises:
        ValueError: An argument is out of range.
    """
    require(len(candidates) > 0, "measure", "candidates", "at least one callable", candidates)
    rounds = require_integer("measure", "rounds", rounds)
    warmup = require_integer("measure", "warmup", warmup, minimum=0)
    for _ in range(warmup):
        for run in candidates.values():
            run()
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    peak = dict.fromkeys(candidates, 0)
    total = 0.0
    for _ in range(rounds):
        for name, run in candidates.items():
            time.sleep(pause)
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            start = clock()
            run()
            elapsed = clock() - start
            peak[name] = max(peak[name], mx.get_peak_memory() - before)
            taken[name].append(1e3 * elapsed)
            total += elapsed
        if seconds is not None and total >= seconds:
            break
    return {name: Timing(tuple(taken[name]), peak[name]) for name in candidates}


def per_timestep_example(milliseconds: float, length: int, batch_size: int) -> float:
    """The paper's unit: milliseconds per timestep of one example.

    ``length`` is T, the number of inputs; the steps that flush the delay are not counted.
    """
    return milliseconds / (length * batch_size)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where figures were taken, without names of hosts, users or folders.

    Attributes:
        processor: Model of the CPU.
        cores: CPU cores that this process may use.
        device: MLX's default device and its model.
        system: The operating system.
        python: Version of Python.
        mlx: Version of MLX.
        blas: The library that computes MLX's matrix products on the CPU.
        commit: Git commit of the checkout, "+ changes" where files differ; ``None`` outside one.
    """

    processor: str
    cores: int
    device: str
    system: str
    python: str
    mlx: str
    blas: str
    commit: str | None

    @property
    def slow_blas(self) -> bool:
        """Whether MLX used the reference BLAS, which is some 30 times slower than OpenBLAS."""
        return self.device.startswith("cpu") and self.blas == _REFERENCE_BLAS


def machine() -> Machine:
    """Describe this machine and MLX's default device."""
    device = mx.default_device()
    kind = "cpu" if device == mx.cpu else "gpu"
    affinity = getattr(os, "sched_getaffinity", None)
    return Machine(
        processor=device_facts(mx.cpu).get("device_name", platform.machine()),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        device=f"{kind} ({device_facts(device).get('device_name', 'unknown')})",
        system=platform.platform(terse=True),
        python=platform.python_version(),
        mlx=mx.__version__,
        blas=blas.name() if blas.is_fast() else _REFERENCE_BLAS,
        commit=_commit(Path(__file__).resolve().parents[2]),
    )


def device_facts(device: mx.Device | mx.DeviceType) -> dict[str, Any]:
    """What MLX knows of a device; nothing where there is none, as on a Mac without a screen."""
    try:
        return dict(mx.device_info(device))
    except RuntimeError:
        return {}


def _commit(folder: Path) -> str | None:
    # A Mac without developer tools has a git that opens a window which offers to install them.
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None
        changes = " + changes" if git("status", "--porcelain") else ""
        return git("rev-parse", "--short=12", "HEAD") + changes
    except (OSError, subprocess.CalledProcessError):
        return None

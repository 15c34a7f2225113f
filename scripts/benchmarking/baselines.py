"""The benchmark's sizes, and the process in which PyTorch runs."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from mlx_tlstm.checking.timing import per_timestep_example

KERNEL_SIZE = 3
INPUT_SIZE = 65  # symbols of the memorization task


@dataclasses.dataclass(frozen=True)
class Size:
    """One row of the table: P of each axis, M, B and T."""

    tensor_size: tuple[int, ...]
    hidden_size: int
    batch_size: int
    length: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read ``4x4,M=100,B=15,T=42``.

        Raises:
            ValueError: The text has another form, or a number is 0.
        """
        match = re.fullmatch(r"(\d+(?:x\d+)*),M=(\d+),B=(\d+),T=(\d+)", text.replace(" ", ""))
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        if match is None or 0 in numbers:
            raise ValueError(f"a size reads like 4x4,M=100,B=15,T=42 but got {text!r}")
        return cls(tuple(numbers[:-3]), *numbers[-3:])

    def __str__(self) -> str:
        locations = "x".join(map(str, self.tensor_size))
        return f"{locations}, M={self.hidden_size}, B={self.batch_size}, T={self.length}"

    def unit(self, milliseconds: float) -> float:
        return per_timestep_example(milliseconds, self.length, self.batch_size)


class TorchProcess:
    """``pytorch_tlstm.py`` in its own process, without the BLAS that MLX is given."""

    def __init__(self, gpu: bool) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarking.pytorch_tlstm"],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.description = self.ask("describe", gpu)

    def ask(self, *request: Any) -> Any:
        """Send a request and wait for its reply."""
        pickle.dump(request, self._process.stdin)
        self._process.stdin.flush()
        try:
            return pickle.load(self._process.stdout)
        except EOFError:
            raise click.ClickException("the PyTorch process ended; see its error above") from None

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def __str__(self) -> str:
        return "{version} on {device}, {threads} threads".format(**self.description)

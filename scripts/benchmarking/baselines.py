"""What the benchmark holds our layers against: the bare matrix products, and PyTorch."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import mlx.core as mx

from mlx_tlstm.timing import per_timestep_example

KERNEL_SIZE = 3
INPUT_SIZE = 65  # symbols of the memorization task

#: The bare products: steps that are queued before their results are let go, and the largest
#: operand of the weight gradient in elements (64 MiB).
STEPS_QUEUED = 8
WEIGHT_GRADIENT_ELEMENTS = 1 << 24


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


def bare_products(size: Size) -> Callable[[], None]:
    """The matrix products of a tLSTM's forward and backward pass and nothing else.

    With N = B·<P> rows, KM = <K>·M inputs and O = 4M + <K> outputs, each step takes [N, KM] by
    [KM, O] and, backward, [N, O] by [O, KM]; the weight gradient [O, T'N] by [T'N, KM] is taken in
    pieces of many steps; then come the input projection's three. T' = T + L - 1.
    """
    axes, M = len(size.tensor_size), size.hidden_size
    N, KM = size.batch_size * math.prod(size.tensor_size), KERNEL_SIZE**axes * M
    O = 4 * M + KERNEL_SIZE**axes
    steps = size.length + max(size.tensor_size) - 1  # L = P at K = 3
    piece = min(steps, max(1, WEIGHT_GRADIENT_ELEMENTS // (N * KM)))
    rows = mx.random.normal((piece * N, KM))
    d_rows = mx.random.normal((piece * N, O))
    weight = mx.random.normal((O, KM))
    x = mx.random.normal((size.length * size.batch_size, INPUT_SIZE))
    d_projected = mx.random.normal((size.length * size.batch_size, M))
    projection = mx.random.normal((M, INPUT_SIZE))
    row, d_row = mx.contiguous(rows[:N]), mx.contiguous(d_rows[:N])
    mx.eval(rows, d_rows, weight, x, d_projected, projection, row, d_row)

    def run() -> None:
        mx.async_eval(x @ projection.T)
        for product in (lambda: row @ weight.T, lambda: d_row @ weight):
            for first in range(0, steps, STEPS_QUEUED):
                mx.async_eval([product() for _ in range(min(STEPS_QUEUED, steps - first))])
        for first in range(0, steps, piece):
            count = min(piece, steps - first) * N
            mx.async_eval(d_rows[:count].T @ rows[:count])
        mx.async_eval(d_projected.T @ x, d_projected @ projection)
        mx.synchronize()

    return run


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

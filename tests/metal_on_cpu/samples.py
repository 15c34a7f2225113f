"""The sample kernels in kernels/: arguments of a call, and NumPy's result in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metal_on_cpu.dtypes import bfloat16
from metal_on_cpu.kernel import Kernel

SOURCES = {
    path.stem: path.read_text() for path in (Path(__file__).parent / "kernels").glob("*.metal")
}
#: Largest error of outputs of about 1 to 4, rounded once to the type after float32 sums.
TOLERANCE = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), bfloat16]


class Case(NamedTuple):
    """Keyword arguments of a call and the expected output."""

    call: dict[str, Any]
    expected: np.ndarray

    @property
    def check_arguments(self) -> dict[str, Any]:
        """Those that :meth:`Kernel.check` takes."""
        names = ("inputs", "template", "output_dtypes")
        return {name: self.call[name] for name in names if name in self.call}


def conv2d(source: str = SOURCES["conv2d"], header: str = "") -> Kernel:
    """A 2D convolution as an implicit matrix product on simdgroup matrices."""
    header = "#include <metal_simdgroup_matrix>\n" + header
    return Kernel("conv2d", ["x", "wt", "bias"], ["y"], source, header)


def gate(source: str = SOURCES["gate"], header: str = "") -> Kernel:
    """A softmax over each simdgroup's lanes, and its weighted sum of rows."""
    return Kernel("gate", ["logits", "v", "gate"], ["out"], source, header)


def conv2d_case(
    batch: int,
    height: int,
    width: int,
    channels: int,
    filters: int,
    kernel_size: tuple[int, int],
    dtype: Any = np.float32,
) -> Case:
    """Zero padding, stride 1; x [B, H, W, C], weight [KH, KW, C, N], bias [N]."""
    generator = np.random.default_rng(0)
    rows, columns = kernel_size
    x = generator.normal(size=(batch, height, width, channels)).astype(dtype)
    weight = generator.normal(size=(rows, columns, channels, filters))
    weight = (weight / math.sqrt(rows * columns * channels)).astype(dtype)
    bias = generator.normal(size=filters).astype(dtype)

    padded = np.zeros((batch, height + rows - 1, width + columns - 1, channels))
    padded[:, rows // 2 : rows // 2 + height, columns // 2 : columns // 2 + width] = x
    weight64 = weight.astype(np.float64)
    expected = bias.astype(np.float64) + sum(
        padded[:, i : i + height, j : j + width] @ weight64[i, j]
        for i in range(rows)
        for j in range(columns)
    )
    template = {"T": dtype, "H": height, "W": width, "C": channels, "N": filters}
    call = {
        "inputs": [x, weight, bias],
        "template": [*template.items(), ("KH", rows), ("KW", columns)],
        "grid": (128 * math.ceil(filters / 32), math.ceil(batch * height * width / 32), 1),
        "threadgroup": (128, 1, 1),
        "output_shapes": [(batch, height, width, filters)],
        "output_dtypes": [dtype],
    }
    return Case(call, expected)


def gate_case(rows: int, choices: int, size: int, dtype: Any = np.float32) -> Case:
    """logits [R, K], v [R, K, D], gate [R, D]; K <= 32."""
    generator = np.random.default_rng(0)
    shapes = ((rows, choices), (rows, choices, size), (rows, size))
    inputs = [generator.normal(size=shape).astype(dtype) for shape in shapes]
    logits, v, gate_ = (array.astype(np.float64) for array in inputs)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    call = {
        "inputs": inputs,
        "template": [("T", dtype), ("K", choices), ("D", size)],
        "grid": (128 * math.ceil(rows / 4), 1, 1),
        "threadgroup": (128, 1, 1),
        "output_shapes": [(rows, size)],
        "output_dtypes": [dtype],
    }
    silu = gate_ / (1 + np.exp(-gate_))
    return Case(call, np.einsum("rk,rkd->rd", weights, v) * silu)


def samples(dtype: Any = np.float32) -> dict[str, tuple[Kernel, Case]]:
    """Each sample, and a call of sizes that fill no threadgroup."""
    return {
        "convolution": (conv2d(), conv2d_case(3, 7, 5, 20, 37, (3, 3), dtype)),
        "gate": (gate(), gate_case(37, 9, 100, dtype)),
    }


def largest_error(output: np.ndarray, expected: np.ndarray) -> float:
    """The largest absolute difference, taken in float64; infinite if anything is not a number."""
    error = np.abs(np.asarray(output).astype(np.float64) - expected).max()
    return float(error) if np.isfinite(error) else math.inf

"""MLX's own matrix product, from the headers in its wheel: code that is known to be right on Metal.

It uses ``simdgroup_matrix`` through ``thread_elements()``, so it relies on Apple's element layout.
"""

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from metal_on_cpu import Kernel, Spec
from metal_on_cpu.samples import DTYPES, largest_error
from metal_on_cpu.toolchain import NATIVE, mlx_headers

pytestmark = [
    pytest.mark.usefixtures("compiler"),
    pytest.mark.skipif(mlx_headers() is None, reason="the installed MLX brings no headers"),
]

BODY = """
using gemm = mlx::steel::GEMMKernel<T, T, 32, 32, 16, 2, 2, TA, TB, false, false, float>;
threadgroup T As[gemm::tgp_mem_size_a];
threadgroup T Bs[gemm::tgp_mem_size_b];
gemm::run(A, B, D, (const constant mlx::steel::GEMMParams*)params, As, Bs,
          thread_index_in_simdgroup, simdgroup_index_in_threadgroup,
          threadgroup_position_in_grid, thread_position_in_threadgroup);
"""
#: Largest error of sums of 45 products of unit normals, rounded once to the type.
TOLERANCE = {"float32": 2e-5, "float16": 2e-2, "bfloat16": 1.3e-1}


def _expand(header: str, seen: set[str]) -> str:
    """The header with those it includes from MLX, as MLX itself puts it into one text."""
    if header in seen:
        return ""
    seen.add(header)
    path = NATIVE / "shim" / header
    path = path if path.exists() else Path(str(mlx_headers())) / header
    lines = []
    for line in path.read_text().splitlines():
        included = re.match(r'\s*#include "(mlx/[^"]+)"', line)
        if included:
            lines.append(_expand(included.group(1), seen))
        elif not re.search(
            r"#include <metal|#pragma once|typedef (half|bfloat) b?float16_t;", line
        ):
            lines.append(line)
    return "\n".join(lines)


def _gemm_header() -> str:
    seen: set[str] = set()
    kernels = "mlx/backend/metal/kernels"
    header = "\n".join(
        _expand(f"{kernels}/{name}", seen) for name in ("utils.h", "steel/gemm/gemm.h")
    )
    return re.sub(r"\[\[threadgroup\(\d\)\]\]", "", header)


def _without_address_space_specialisations(header: str) -> str:
    """A run cannot tell address spaces apart: they would be one specialisation four times."""
    pattern = r"template <typename T>\s*struct pointer_element<(?:device|constant|threadgroup) T\*>"
    return re.sub(pattern + r" \{.*?\};", "", header, flags=re.DOTALL)


def _case(dtype, transpose_a, transpose_b):
    m, n, k = 70, 53, 45
    generator = np.random.default_rng(0)
    a = generator.normal(size=(k, m) if transpose_a else (m, k)).astype(dtype)
    b = generator.normal(size=(n, k) if transpose_b else (k, n)).astype(dtype)
    tiles = (-(-n // 32), -(-m // 32))
    parameters = struct.pack(
        "8i3q3i4x", m, n, k, a.shape[1], b.shape[1], n, *tiles, 0, 0, 0, 0, k // 16, 0
    )
    call = {
        "inputs": [a, b, np.frombuffer(parameters, np.int32)],
        "template": [("T", dtype), ("TA", transpose_a), ("TB", transpose_b)],
        "output_dtypes": [dtype],
    }
    launch = {
        "grid": (32 * tiles[0], 2 * tiles[1], 2),
        "threadgroup": (32, 2, 2),
        "output_shapes": [(m, n)],
    }
    a, b = a.astype(np.float64), b.astype(np.float64)
    expected = (a.T if transpose_a else a) @ (b.T if transpose_b else b)
    return call, launch, expected


def _kernel(header: str) -> Kernel:
    return Kernel("gemm", ["A", "B", "params"], ["D"], BODY, header, with_mlx_utils=False)


@pytest.mark.parametrize("mode", ["fast", "san"])
@pytest.mark.parametrize(
    ("transpose_a", "transpose_b"), [(False, False), (True, False), (False, True)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_product(dtype, transpose_a, transpose_b, mode):
    call, launch, expected = _case(dtype, transpose_a, transpose_b)
    kernel = _kernel(_without_address_space_specialisations(_gemm_header()))
    (output,) = kernel(**call, **launch, mode=mode)
    assert largest_error(output, expected) < TOLERANCE[dtype.name]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_type_check_passes(dtype):
    call, _, _ = _case(dtype, False, True)
    call["inputs"][2] = Spec((7,), np.int32)  # few enough for the constant address space
    # Clang holds that a constructor for thread memory cannot construct a member.
    header = re.sub(r"(MMATile\(\)) thread", r"\1", _gemm_header())
    _kernel(header).check(**call, small_inputs=False)

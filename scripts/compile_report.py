"""Compile the kernels for an NVIDIA GPU and print what they need; no GPU is needed.

Every kernel that a layer of the given sizes launches is translated as for mx.fast.cuda_kernel and
compiled by NVRTC (pip install nvidia-cuda-nvrtc nvidia-cuda-runtime). A spill means that registers
did not suffice. Metal's compiler allots registers in its own way: these numbers are CUDA's.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import math
import re
import sys
from pathlib import Path
from typing import Any

import click

import mlx_tlstm  # before MLX, so that it finds the fast BLAS

# isort: split
import mlx.core as mx
from benchmarking.baselines import INPUT_SIZE, Size
from benchmarking.launches import Launch, of_a_pass
from benchmarking.report import Table

from mlx_tlstm.commands.base import Command
from mlx_tlstm.kernels import cuda, library
from mlx_tlstm.layers.base import DTYPES

SIZES = (
    "10x10,M=100,B=15,T=42",
    "7x7,M=400,B=15,T=49",
    "4x4,M=522,B=100,T=50",
    "5x5,M=100,B=50,T=784",
    "1,M=100,B=15,T=200",
    "10,M=100,B=15,T=200",
)
LAYERS = (
    *(functools.partial(mlx_tlstm.TLSTM, norm=norm) for norm in (None, "channel", "layer")),
    mlx_tlstm.TRNN,
)
CUDA_TYPES = {mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16"}

#: Where a CUDA toolkit lies, unless NVIDIA's wheels are installed.
TOOLKIT = Path("/usr/local/cuda")

#: What MLX's own header provides to a kernel's signature.
_MLX_HEADER = b"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>
namespace mlx::core::cu {
struct Shape { int item[8]; __device__ int operator[](int i) const { return item[i]; } };
}
"""


def cuda_source(launch: Launch) -> str:
    """The text that MLX's CUDA back end compiles for a launch (build_kernel in MLX's source)."""
    body = cuda.cuda_body(library.source(f"{launch.name}.metal"))
    header = cuda.cuda_header(library.source("cuda.h"), library.source("tlstm.h"))
    parameters = []
    for name, dtype, _ in launch.inputs:
        parameters.append(f"const {CUDA_TYPES[dtype]}* {name}")
        if f"{name}_shape" in body:
            parameters.append(f"const __grid_constant__ Shape {name}_shape")
    parameters += [f"{CUDA_TYPES[dtype]}* {name}" for name, dtype in launch.outputs]
    constants = "".join(_constant(name, value) for name, value in launch.template)
    return (
        f'#include "mlx.h"\n{header}namespace mlx::core::cu {{\n'
        f'extern "C" __global__ void {launch.name}({", ".join(parameters)}) {{\n'
        f"{constants}{body}\n}}\n}}\n"
    )


def _constant(name: str, value: Any) -> str:
    if isinstance(value, mx.Dtype):
        return f"using {name} = {CUDA_TYPES[value]};\n"
    kind = "bool" if isinstance(value, bool) else "int"
    return f"constexpr {kind} {name} = {str(value).lower()};\n"


class Compiler:
    """NVRTC, from the wheels of NVIDIA or a CUDA toolkit."""

    def __init__(self, architecture: str) -> None:
        wheels = importlib.util.find_spec("nvidia")
        roots = [Path(root) for root in (wheels.submodule_search_locations if wheels else ())]
        roots = [*(child for root in roots for child in root.glob("cu*")), TOOLKIT]
        libraries = [file for root in roots for file in sorted(root.glob("lib*/libnvrtc.so.*"))]
        headers = [root / "include" for root in roots if (root / "include/cuda_fp16.h").is_file()]
        if not libraries or not headers:
            raise click.ClickException(
                "NVRTC and CUDA's headers are needed: "
                "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"
            )
        self._library = ctypes.CDLL(str(libraries[0]))
        self._options = [
            "--device-as-default-execution-space",
            f"--gpu-architecture={architecture}",
            "--ptxas-options=--verbose",
            *(f"--include-path={folder}" for folder in headers),
        ]

    def compile(self, source: str, name: str) -> str:
        """The compiler's messages.

        Raises:
            click.ClickException: The source is wrong.
        """
        program = ctypes.c_void_p()
        contents, names = (ctypes.c_char_p * 1)(_MLX_HEADER), (ctypes.c_char_p * 1)(b"mlx.h")
        create = self._library.nvrtcCreateProgram
        create(ctypes.byref(program), source.encode(), f"{name}.cu".encode(), 1, contents, names)
        options = (ctypes.c_char_p * len(self._options))(*(o.encode() for o in self._options))
        failed = self._library.nvrtcCompileProgram(program, len(self._options), options)
        size = ctypes.c_size_t()
        self._library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self._library.nvrtcGetProgramLog(program, log)
        self._library.nvrtcDestroyProgram(ctypes.byref(program))
        if failed:
            raise click.ClickException(f"{name} does not compile:\n{log.value.decode()}")
        return log.value.decode()


def resources(log: str) -> tuple[int, int, int]:
    """Registers of a thread, bytes of shared memory, bytes that are spilt."""

    def number(pattern: str) -> int:
        found = re.search(pattern, log)
        return int(found[1]) if found else 0

    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), spills


def report(
    sizes: tuple[Size, ...], dtypes: tuple[str, ...], compiler: Compiler, by_size: bool
) -> Table:
    """A row for each kernel and type, and size if asked for: its variants at their worst."""
    needs: dict[Launch, tuple[int, int, int]] = {}
    rows: dict[tuple[str, ...], set[Launch]] = {}
    for size, dtype, build in itertools.product(sizes, dtypes, LAYERS):
        layer = build(INPUT_SIZE, size.hidden_size, size.tensor_size)
        layer.set_dtype(getattr(mx, dtype))
        # 9 steps have every variant of a longer sequence.
        for launch in of_a_pass(layer, size.batch_size, 9):
            if launch not in needs:
                log = compiler.compile(cuda_source(launch), launch.name)
                needs[launch] = resources(log)
            row = (launch.name, dtype, str(size)) if by_size else (launch.name, dtype)
            rows.setdefault(row, set()).add(launch)
    cells = []
    for row, launches in sorted(rows.items()):
        numbers = [(math.prod(one.threadgroup), *needs[one]) for one in launches]
        largest = (str(max(column)) for column in zip(*numbers, strict=True))
        cells.append((*row, str(len(launches)), *largest))
    names = ("kernel", "dtype", "size") if by_size else ("kernel", "dtype")
    header = (*names, "variants", "threads", "registers", "shared", "spilt")
    return Table("The most that a variant of a kernel needs", header, cells, {})


@click.command(cls=Command, help=__doc__)
@click.option("--size", "sizes", multiple=True, default=SIZES, help=f"Like {SIZES[0]}; repeatable.")
@click.option("--dtype", "dtypes", multiple=True, default=DTYPES, type=click.Choice(DTYPES))
@click.option("--arch", default="sm_90", show_default=True, help="The GPU to compile for.")
@click.option("--by-size", is_flag=True, help="A row for each size.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
def main(
    sizes: tuple[str, ...],
    dtypes: tuple[str, ...],
    arch: str,
    by_size: bool,
    markdown: bool,
) -> None:
    try:
        parsed = tuple(Size.parse(size) for size in sizes)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    table = report(parsed, dtypes, Compiler(arch), by_size)
    click.echo(table.text(markdown))
    if any(int(row[-1]) for row in table.rows):
        click.echo("\nSome kernels spill registers.")
        sys.exit(1)


if __name__ == "__main__":
    main()

"""The kernels as CUDA, compiled by NVRTC without a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from pathlib import Path

import click
import mlx.core as mx

from benchmarking.launches import Launch, signature
from mlx_tlstm.kernels import library

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
    header, body = library.cuda_text(launch.name)
    parameters, constants = signature(launch, CUDA_TYPES, body)
    return (
        f'#include "mlx.h"\n{header}namespace mlx::core::cu {{\n'
        f'extern "C" __global__ void {launch.name}({parameters}) {{\n'
        f"{constants}{body}\n}}\n}}\n"
    )


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
        # NVRTC looks for its built-in functions among the system's libraries, not beside itself.
        for builtins in libraries[0].parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
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

"""The compiler that reads Metal's language as C++: which one, its flags, and the build cache.

``METAL_ON_CPU_CLANG`` chooses a clang++ (version 19 or later) or ``zig``, the compiler in the
ziglang wheel; unset, ``clang++-19`` is taken where it is installed, else the wheel.
``METAL_ON_CPU_CACHE`` is the folder of compiled kernels, by default one in the temporary folder.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parent / "native"

_NO_WARNINGS = [
    "-Wno-unknown-attributes",
    "-Wno-user-defined-literals",
    "-Wno-reserved-user-defined-literal",
    "-Wno-unused-value",
    "-Wno-pass-failed",
]
#: C++ for OpenCL has Metal's address spaces; without its extensions it has no double either. Any
#: 64-bit target serves, since nothing is generated.
CHECK_FLAGS = [
    "-xcl",
    "-cl-std=clc++2021",
    "-cl-no-stdinc",
    "--target=x86_64-linux-gnu",
    "-Xclang",
    "-cl-ext=-cl_khr_fp64,-__opencl_c_fp64,-__opencl_c_read_write_images,-__opencl_c_pipes,"
    "-__opencl_c_device_enqueue,-cl_khr_3d_image_writes,-__opencl_c_3d_image_writes",
    "-fsyntax-only",
    "-Wall",
    "-Wextra",
    "-Wconditional-uninitialized",
    "-Wimplicit-float-conversion",
    "-Wno-unused-parameter",
    "-Wno-null-dereference",
    *_NO_WARNINGS,
]
#: half and bfloat round after every operation. Products and sums of one expression are fused, as
#: Metal's safe math mode allows (-ffp-contract=on there, too): always, so the numbers of both
#: modes and of all machines with the same C library are the same.
_RUN_FLAGS = [
    "-xc++",
    "-std=c++17",
    "-cl-single-precision-constant",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
    "-ffp-contract=on",
    "-fno-math-errno",
    "-fno-exceptions",
    "-fno-rtti",
    "-fPIC",
    "-fvisibility=hidden",
    "-fdebug-compilation-dir=.",
    *_NO_WARNINGS,
]
_SANITIZE_FLAGS = [
    "-O1",
    "-gline-tables-only",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-ftrivial-auto-var-init=pattern",
    # ThreadSanitizer's and UBSan's instrumentation, without their libraries: native/runtime has
    # the functions that it calls.
    "-Xclang",
    "-fsanitize=thread",
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    "-mllvm",
    "-tsan-instrument-atomics=0",
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
    "-Xclang",
    "-fsanitize=array-bounds,shift-base,shift-exponent,integer-divide-by-zero,"
    "signed-integer-overflow,float-cast-overflow,alignment,bool,unreachable,return",
]
_MACHINE_FLAGS = {"x86_64": ["-march=x86-64-v3"], "aarch64": []}

#: The flags of each mode of a run.
MODE_FLAGS = {
    "fast": [*_RUN_FLAGS, *_MACHINE_FLAGS.get(platform.machine(), []), "-O2"],
    "san": [*_RUN_FLAGS, *_MACHINE_FLAGS.get(platform.machine(), []), *_SANITIZE_FLAGS],
}
RUNTIME_FLAGS = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-Wall",
    "-Werror",
]


@dataclass(frozen=True)
class Toolchain:
    """The commands of one compiler."""

    version: str
    compile: tuple[str, ...]
    compile_with_libc: tuple[str, ...]  # finds the C library's headers
    link: tuple[str, ...]


def why_unavailable() -> str | None:
    """Why no kernel can be compiled and run here; None where it can."""
    if sys.platform != "linux" or platform.machine() not in _MACHINE_FLAGS:
        return f"Metal on the CPU needs Linux on x86-64 or aarch64, this is {platform.platform()}"
    try:
        toolchain()
    except FileNotFoundError as error:
        return str(error)
    return None


@functools.cache
def toolchain() -> Toolchain:
    """The compiler in use.

    Raises:
        FileNotFoundError: where there is none; the message says what to install.
    """
    chosen = os.environ.get("METAL_ON_CPU_CLANG")
    if chosen != "zig":
        clang = shutil.which(chosen or "clang++-19")
        if clang is not None:
            return _clang(clang)
        if chosen is not None:
            raise FileNotFoundError(f"METAL_ON_CPU_CLANG names no program: {chosen}")
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.submodule_search_locations is None:
        raise FileNotFoundError(
            "Metal on the CPU needs a compiler: pip install ziglang, or apt-get install clang-19"
        )
    return _zig(Path(spec.submodule_search_locations[0]) / "zig")


def _clang(program: str) -> Toolchain:
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return Toolchain(
        version=version.stdout.splitlines()[0],
        compile=(program,),
        compile_with_libc=(program,),
        link=(program, "-shared", "-nostdlib", "-Wl,-Bsymbolic"),
    )


def _zig(program: Path) -> Toolchain:
    # "zig clang" and "zig ld.lld" are LLVM's own programs; "zig c++" adds flags and a C library.
    return Toolchain(
        version=f"ziglang {importlib.metadata.version('ziglang')}",
        compile=(str(program), "clang"),
        compile_with_libc=(str(program), "c++", "-fno-sanitize=all"),
        link=(str(program), "ld.lld", "-shared", "-Bsymbolic"),
    )


@functools.cache
def mlx_headers() -> Path | None:
    """The folder of Metal headers in the installed MLX, which every MLX wheel brings."""
    spec = importlib.util.find_spec("mlx")
    for folder in (spec and spec.submodule_search_locations) or []:
        if (Path(folder) / "include/mlx/backend/metal/kernels/utils.h").exists():
            return Path(folder) / "include"
    return None


def include_flags(with_mlx: bool) -> list[str]:
    """Where the stand-ins for Metal's headers are; ``with_mlx``: and MLX's own, after them."""
    flags = [f"-I{NATIVE}", f"-I{NATIVE / 'shim'}"]
    if with_mlx and mlx_headers() is not None:
        flags.append(f"-I{mlx_headers()}")
    return flags


def run(command: Iterable[str | Path]) -> subprocess.CompletedProcess[str]:
    """Runs a program of the toolchain, whose own cache stays within ours."""
    zig_cache = str(cache_folder() / "zig")
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": zig_cache, "ZIG_LOCAL_CACHE_DIR": zig_cache}
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=environment
    )


def cache_folder() -> Path:
    """The folder of what was compiled; nobody else may write there."""
    default = Path(tempfile.gettempdir()) / f"metal-on-cpu-{os.getuid()}"
    folder = Path(os.environ.get("METAL_ON_CPU_CACHE", default))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def cached(name: str, key: Iterable[str], suffix: str, make: Callable[[Path], None]) -> Path:
    """The file that ``make`` writes to the path it is given, made once per key.

    The compiler, MLX's version and the native sources are part of every key. Processes that make
    the same file at the same time do not meet: each writes its own and renames it.
    """
    digest = hashlib.sha256("\0".join([*key, _common_key()]).encode()).hexdigest()[:24]
    path = cache_folder() / f"{name}-{digest}{suffix}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            made = Path(folder) / path.name
            make(made)
            made.replace(path)
    return path


@functools.cache
def _common_key() -> str:
    sources = sorted(path for path in NATIVE.rglob("*") if path.is_file())
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    mlx = importlib.metadata.version("mlx") if mlx_headers() is not None else ""
    return f"{toolchain().version} {mlx} {digest}"


def runtime_objects() -> list[Path]:
    """The compiled runtime, which every kernel is linked with."""
    return [_runtime_object(source) for source in sorted((NATIVE / "runtime").glob("*.cpp"))]


def _runtime_object(source: Path) -> Path:
    def make(path: Path) -> None:
        command = [*toolchain().compile_with_libc, *RUNTIME_FLAGS, "-c", source, "-o", path]
        result = run(command)
        if result.returncode:
            raise RuntimeError(f"the runtime does not compile:\n{result.stderr}")

    return cached(f"runtime-{source.stem}", RUNTIME_FLAGS, ".o", make)

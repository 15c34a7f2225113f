"""Count what clang makes of the kernels, and what MLX makes of a step; no GPU is needed.

The kernels that a layer launches are compiled to LLVM's intermediate code by the clang of the
ziglang wheel, at -O2, with the GPU's own functions left open. What is counted there no GPU's
compiler has to do again: calls of helpers that stayed calls, arrays that stayed in memory
(allocas), and the integer work around the matrix products of a slice. Registers and spills are
compile_report.py's.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
import mlx.core as mx
from benchmarking.launches import Launch, networks, of_a_pass, of_a_step, signature
from benchmarking.sizes import Size, SizeType
from benchmarking.tables import Table, markdown_option

from mlx_tlstm.commands.base import Command
from mlx_tlstm.kernels import cuda, library, tiles, tuning

SIZE = "10x10,M=100,B=15,T=42"
TYPES = {mx.float32: "float", mx.float16: "half", mx.bfloat16: "bfloat16_t"}

#: Metal's names, each function of the GPU an unknown one that starts with ``gpu_``.
_STUBS = """
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef _Float16 half;
typedef __bf16 bfloat16_t;
struct uint3 { uint x, y, z; };
struct Shape { int item[8]; int operator[](int i) const { return item[i]; } };
#define METAL_FUNC inline __attribute__((always_inline))
#define STUB METAL_FUNC
#define CONST __attribute__((const))
#define INFINITY __builtin_inff()
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
extern "C" {
CONST uint gpu_index(int which);
CONST float gpu_function(int which, float x);
CONST float gpu_shuffle_float(float x, ushort lane);
CONST int gpu_shuffle_int(int x, ushort lane);
void gpu_barrier();
void gpu_seldom();
}
template <typename T> struct Fragment { typedef T type __attribute__((ext_vector_type(2))); };
template <typename T> typename Fragment<T>::type gpu_load(const T*, ulong, bool);
template <typename T> void gpu_store(typename Fragment<T>::type, T*, ulong);
template <typename A, typename S>
typename Fragment<S>::type gpu_multiply(
    typename Fragment<A>::type, typename Fragment<A>::type, typename Fragment<S>::type);
STUB uint msl_thread_index_in_threadgroup() { return gpu_index(0); }
STUB uint msl_thread_index_in_simdgroup() { return gpu_index(1); }
STUB uint msl_simdgroup_index_in_threadgroup() { return gpu_index(2); }
STUB uint3 msl_threadgroup_position_in_grid() { return {gpu_index(3), gpu_index(4), 0}; }
STUB uint3 msl_thread_position_in_grid() { return {gpu_index(5), gpu_index(6), 0}; }
STUB uint3 msl_threadgroups_per_grid() { return {gpu_index(7), gpu_index(8), 0}; }
namespace metal {
enum class mem_flags { mem_none, mem_device, mem_threadgroup };
STUB void threadgroup_barrier(mem_flags) { gpu_barrier(); }
STUB float fabs(float x) { return __builtin_fabsf(x); }
STUB float max(float a, float b) { return a < b ? b : a; }
STUB int min(int a, int b) { return a < b ? a : b; }
STUB int clamp(int x, int low, int high) { return x < low ? low : high < x ? high : x; }
namespace precise {
STUB float exp(float x) { return gpu_function(0, x); }
STUB float tanh(float x) { return gpu_function(1, x); }
STUB float sqrt(float x) { return gpu_function(2, x); }
}
STUB float simd_sum(float x) { return gpu_function(3, x); }
STUB float simd_max(float x) { return gpu_function(4, x); }
STUB float simd_shuffle(float x, ushort lane) { return gpu_shuffle_float(x, lane); }
STUB int simd_shuffle(int x, ushort lane) { return gpu_shuffle_int(x, lane); }
struct ulong2 { ulong x, y; STUB ulong2(ulong a, ulong b) : x(a), y(b) {} };
template <typename T, int C, int R> struct simdgroup_matrix { typename Fragment<T>::type part; };
template <typename T, int C, int R> STUB simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T x)
{ return {{x, x}}; }
template <typename T> STUB void simdgroup_load(
    simdgroup_matrix<T, 8, 8>& m, const T* from, ulong stride, ulong2, bool transposed)
{ m.part = gpu_load<T>(from, stride, transposed); }
template <typename T> STUB void simdgroup_store(simdgroup_matrix<T, 8, 8> m, T* to, ulong stride)
{ gpu_store<T>(m.part, to, stride); }
template <typename S, typename A> STUB void simdgroup_multiply_accumulate(
    simdgroup_matrix<S, 8, 8>& d, simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<A, 8, 8> b,
    simdgroup_matrix<S, 8, 8> c)
{ d.part = gpu_multiply<A, S>(a.part, b.part, c.part); }
}
using namespace metal;
"""
#: What few slices do: at a change of tap, or of the time step.
_SELDOM = re.compile(r"if \((?:moved|next == 0)\) \{")
_ARITHMETIC = {"add", "sub", "mul", "shl", "lshr", "ashr", "and", "or", "xor", "icmp", "select"}
_DIVISIONS = {"sdiv", "srem", "udiv", "urem"}


class Code(NamedTuple):
    """What is counted of a kernel.

    Attributes:
        calls: Names of the functions that are called but for the GPU's own.
        allocas: Arrays and variables that stayed in memory.
        operations: Integer operations in the loop of the matrix products, for a thread and slice,
            but for what few slices do.
        divisions: Divisions and remainders there, by constants.
    """

    calls: list[str]
    allocas: int
    operations: int
    divisions: int


def compiled(text: str) -> Code:
    """Compiles the text of a kernel in C++ and counts.

    Raises:
        click.ClickException: There is no compiler, or the text is wrong.
    """
    # What is inlined without force differs: a CPU's compiler leaves more calls. Integer work is
    # counted as an NVIDIA GPU's compiler is given it, in which no structure is packed in registers.
    on_cpu, on_gpu = (_counted(_llvm(text, target)) for target in ((), ("-target", "nvptx64-cuda")))
    return Code(on_cpu.calls, on_cpu.allocas, on_gpu.operations, on_gpu.divisions)


def _llvm(text: str, target: tuple[str, ...]) -> str:
    command = [sys.executable, "-m", "ziglang", "c++", *target, "-xc++", "-std=c++17", "-O2", "-S"]
    command += ["-emit-llvm", "-fno-vectorize", "-fno-slp-vectorize", "-fno-math-errno", "-w"]
    command += ["-ffp-contract=on", "-fno-exceptions", "-fno-sanitize=all"]
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, "kernel.ll")
        result = subprocess.run(
            [*command, "-o", str(code), "-"], input=text, capture_output=True, text=True
        )
        if result.returncode:
            raise click.ClickException(f"the kernel does not compile:\n{result.stderr}")
        return code.read_text()


def cpp_text(header: str, body: str, launch: Launch) -> str:
    """A kernel as a C++ function, its address spaces taken out as for CUDA."""
    body = cuda.cuda_body(_SELDOM.sub(r"\g<0> gpu_seldom();", body))
    parameters, constants = signature(launch, TYPES, body)
    return (
        f"{cuda.cuda_header(_STUBS, header)}\n"
        f'extern "C" void kernel({parameters}) {{\n{constants}{body}\n}}\n'
    )


def _counted(code: str) -> Code:
    calls, allocas = [], 0
    blocks: dict[str, list[str]] = {}
    label = None
    for line in code[code.index("@kernel(") :].splitlines()[1:]:
        if line == "}":
            break
        if started := re.match(r'^("[^"]+"|[\w.$-]+):', line):
            label = started[1]
        elif line.strip():
            blocks.setdefault(label or "entry", []).append(line.strip())
    for line in (line for lines in blocks.values() for line in lines):
        allocas += " = alloca " in line
        called = re.search(r"\b(?:call|invoke)\b.* @\"?([\w.$]+)\"?\(", line)
        if called and not re.match(r"(gpu_|_Z\d+gpu_|llvm\.)", called[1]):
            calls.append(called[1])
    seldom = {name for name, lines in blocks.items() if any("@gpu_seldom" in x for x in lines)}
    blocks = {name: lines for name, lines in blocks.items() if name not in seldom}
    products = {name for name, lines in blocks.items() if any("gpu_multiply" in x for x in lines)}
    operations = divisions = 0
    for name in _around(blocks, products):
        for line in blocks[name]:
            words = set(line.partition(" = ")[2].split()[:2])
            operations += bool(words & _ARITHMETIC)
            divisions += bool(words & _DIVISIONS)
    return Code(calls, allocas, operations, divisions)


def _around(blocks: dict[str, list[str]], wanted: set[str]) -> set[str]:
    """The blocks from which a wanted one is reached, and that are reached from it: its loop."""
    targets = {
        name: {t for line in lines for t in re.findall(r"label %([\w.$-]+)", line)} & blocks.keys()
        for name, lines in blocks.items()
    }
    sources: dict[str, set[str]] = {name: set() for name in blocks}
    for name, found in targets.items():
        for target in found:
            sources[target].add(name)
    return _reached(wanted, targets) & _reached(wanted, sources)


def _reached(start: Iterable[str], edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    pending = [target for name in start for target in edges[name]]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += edges[name]
    return found


def launched(layer: Any, size: Size) -> list[Launch]:
    """A pass's launches, of both ways to convolve."""
    product = tiles.choose(size.batch_size * layer.cell.geometry.locations, 10**4)
    found = []
    for choice in (product, None):
        with tuning.forced(choice):
            found += of_a_pass(layer, size.batch_size, 9)
    return found


def code_table(size: Size) -> Table:
    """A row for each kernel, its variants at their worst."""
    worst: dict[str, Code] = {}
    launches = {launch for layer in networks(size) for launch in launched(layer, size)}
    for launch in launches:
        code = compiled(cpp_text(*library.text(launch.name), launch))
        before = worst.get(launch.name, Code([], 0, 0, 0))
        largest = map(max, before[1:], code[1:])
        worst[launch.name] = Code(max(before.calls, code.calls, key=len), *largest)
    rows = []
    for name, code in sorted(worst.items()):
        metal, other = (sum(map(len, make(name))) for make in (library.text, library.cuda_text))
        numbers = {
            "calls": len(code.calls),
            "allocas": code.allocas,
            "integer operations": code.operations,
            "divisions": code.divisions,
            "bytes for Metal": metal,
            "for CUDA": other,
        }
        rows.append({"kernel": name} | {column: str(n) for column, n in numbers.items()})
    return Table(f"{size}, float32", rows)


def step_table(size: Size) -> Table:
    """Launches of a time step, and variants compiled for a sequence, of both ways to convolve."""
    layer = networks(size)[1]
    choices = {"tiles": tiles.CANDIDATES[0], "products": None}
    rows = []
    for name, choice in choices.items():
        with tuning.forced(choice):
            launches = sum(of_a_step(layer, size.batch_size).values())
            variants = {(one.name, one.template) for one in of_a_pass(layer, size.batch_size, 42)}
        numbers = {"launches": f"{launches:.2f}", "variants": str(len(variants))}
        rows.append({"by": name} | numbers)
    return Table("A step, channel normalisation", rows)


@click.command(cls=Command, help=__doc__)
@click.option(
    "--size", type=SizeType(), default=SIZE, show_default=True, help="The layer to count."
)
@markdown_option
def main(size: Size, markdown: bool) -> None:
    for table in (step_table(size), code_table(size)):
        click.echo(table.text(markdown) + "\n")


if __name__ == "__main__":
    main()

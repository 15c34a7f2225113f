"""The sample kernels with one bug each."""

from __future__ import annotations

from typing import NamedTuple

from metal_on_cpu.kernel import Kernel
from metal_on_cpu.planting import WRONG_NUMBERS, found, planted
from metal_on_cpu.samples import SOURCES, Case, conv2d, gate, largest_error, samples

CONVOLUTION, GATE = SOURCES["conv2d"], SOURCES["gate"]
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"

#: Kernel without a bug and the call it is tried with.
CASES = samples()


class Bug(NamedTuple):
    """A wrong kernel, and patterns of what the type check and the sanitizer say of it."""

    name: str
    kernel: Kernel
    case: Case
    check_says: str | None
    sanitizer_says: str | None


def run(kernel: Kernel, case: Case, mode: str, order: int = 0) -> str:
    """What a run finds wrong; nothing for the expected numbers."""

    def wrong() -> float:
        (output,) = kernel(**case.call, mode=mode, order=order)
        error = largest_error(output, case.expected)
        return 0.0 if error < 1e-4 else error

    return found(wrong)


def check(kernel: Kernel, case: Case) -> str:
    """What the type check finds wrong."""

    def compiles() -> None:
        kernel.check(**case.check_arguments, small_inputs=False)

    return found(compiles)


def _in_convolution(
    name: str,
    old: str,
    new: str,
    check: str | None = None,
    san: str | None = None,
    occurrence: int = 1,
    header: str = "",
) -> Bug:
    kernel = conv2d(planted(CONVOLUTION, old, new, occurrence), header)
    return Bug(name, kernel, CASES["convolution"][1], check, san)


def _in_gate(name: str, old: str, new: str, san: str) -> Bug:
    return Bug(name, gate(planted(GATE, old, new, 1)), CASES["gate"][1], None, san)


BUGS = [
    _in_convolution(
        "missing barrier after the matrix products",
        *(BARRIER, ""),
        occurrence=2,
        san="data race on threadgroup 'As'",
    ),
    _in_convolution(
        "barrier in a divergent branch",
        *(BARRIER, f"if (tid < 64) {BARRIER}"),
        occurrence=2,
        san="data race|divergence|threadgroup_barrier",
    ),
    _in_convolution(
        "a thread returns before a barrier",
        *("const int M = ", "if (tid == 127) return;\nconst int M = "),
        san="returned without reaching|have already returned",
    ),
    _in_convolution(
        "wrong address space, argument",
        *("T(Cs[e / BN][e % BN]", "T(ld(&Cs[e / BN][e % BN])"),
        header="inline float ld(const device float* p) { return *p; }\n",
        check="no matching function",
    ),
    _in_convolution(
        "wrong address space, pointer",
        *("const int tid =", "device T* q = As; q[0] = 0;\nconst int tid ="),
        check="__local",
        san="data race",
    ),
    _in_convolution(
        "write to an input",
        *("const int tid =", "x[0] = 0;\nconst int tid ="),
        check="not assignable",
    ),
    _in_convolution(
        "threadgroup tile too small",
        *("As[BM * LDA]", "As[BM * BK]"),
        san="out of bounds",
    ),
    _in_convolution(
        "row of a tile overrun, inside the tile",
        *("Cs[e / BN][e % BN]", "Cs[e / BN][e % BN + (e == 0) * LDC]"),
        san="array index out of bounds",
    ),
    _in_convolution(
        "zero padding forgotten",
        "As[r * LDA + e % BK] = in ? x[(m + dh * W + dw) * C + c] : T(0);",
        "if (in) As[r * LDA + e % BK] = x[(m + dh * W + dw) * C + c];",
        san="uninitialised threadgroup",
    ),
    _in_convolution(
        "accumulator not initialised",
        *("acc[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);", ";"),
        san=WRONG_NUMBERS,
    ),
    _in_convolution(
        "transposed operand",
        "&Bs[k * LDB + sn + 8 * j], LDB)",
        "&Bs[k * LDB + sn + 8 * j], LDB, ulong2(0, 0), true)",
        san=WRONG_NUMBERS,
    ),
    _in_convolution(
        "over 32 KB of threadgroup memory",
        *("Cs[BM][LDC]", "Cs[BM * 8][LDC]"),
        san="the limit is 32768",
    ),
    _in_convolution(
        "lanes disagree on a simdgroup_load",
        "&As[(sm + 8 * i) * LDA + k], LDA)",
        "&As[(sm + 8 * i + (tid & 1)) * LDA + k], LDA)",
        san="different arguments",
    ),
    _in_gate(
        "shuffle in divergent flow",
        "for (uint d0 = 0; d0 < D; d0 += 32) {",
        "for (uint d0 = 0; d0 + lane < D; d0 += 32) {",
        san=WRONG_NUMBERS,
    ),
    _in_gate(
        "shuffle from beyond the simdgroup",
        *("simd_shuffle(p, ushort(k))", "simd_shuffle_down(p, ushort(k))"),
        san=WRONG_NUMBERS,
    ),
]

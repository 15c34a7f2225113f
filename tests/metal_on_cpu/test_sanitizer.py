"""What is a data race, and what is not: small kernels on both sides of each rule."""

import numpy as np
import pytest

from metal_on_cpu import Kernel, MslError

pytestmark = pytest.mark.usefixtures("compiler")

PLAIN = "const uint i = thread_position_in_grid.x;\n"
LOCAL = PLAIN + "const uint t = thread_position_in_threadgroup.x; threadgroup float tile[64];\n"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
DEVICE_BARRIER = "threadgroup_barrier(mem_flags::mem_device);"
SIMD_BARRIER = "simdgroup_barrier(mem_flags::mem_threadgroup);"
#: All threads meet there, which orders no memory.
MEETING = "threadgroup_barrier(mem_flags::mem_none);"
FILL = f"if (t == 0) tile[0] = x[i]; {BARRIER}"
READ = f"{FILL} y[i] = tile[0];"


def run(body: str, order: int = 0, init_value: float | None = 0.0) -> None:
    """Two threadgroups of 64 threads; 128 outputs."""
    Kernel("race", ["x"], ["y"], body)(
        inputs=[np.arange(128, dtype=np.float32)],
        grid=(128, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[(128,)],
        output_dtypes=[np.float32],
        init_value=init_value,
        mode="san",
        order=order,
    )


PACK = "struct alignas(16) Pack { float item[4]; };\n" + PLAIN
STORED = (
    "[64];\n"
    "struct Load { static Pack from(const device float* p) { return *(const device Pack*)p; } };\n"
    "*(threadgroup Pack*)(tile) = Load::from(x); y[i] = tile[0];"
)


def test_an_array_is_as_aligned_as_it_says_and_no_more():
    run_one = "if (i % 64 != 0) { y[i] = 0.0f; return; }\n"
    with pytest.raises(MslError, match="misaligned"):
        run(PACK + run_one + "threadgroup float tile" + STORED)
    packed = "#define PACKED __attribute__((aligned(16)))\n"
    run(PACK + run_one + packed + "threadgroup PACKED float tile" + STORED)


BETWEEN_THREADGROUPS = {
    "both write": "y[i % 64] = x[i];",
    "both write the same": "if (i % 64 == 5) y[5] = 1.0f;",
    "one writes, one reads": "if (i < 64) y[i] = x[i]; else y[i] = y[i - 64];",
    "one reads, one writes": "if (i < 64) { if (y[i + 64] < 0.0f) y[i] = 1.0f; } else y[i] = x[i];",
    "a barrier does not reach": f"y[i] = x[i]; {DEVICE_BARRIER} if (i >= 64) y[i] += y[i - 64];",
    "many read, one writes": "if (i < 64) { if (y[99] < 0.0f) y[i] = 1.0f; } else y[i] = 2.0f;",
}


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("name", BETWEEN_THREADGROUPS)
def test_races_between_threadgroups(name, order):
    with pytest.raises(MslError, match="data race on device 'y'") as error:
        run(PLAIN + BETWEEN_THREADGROUPS[name], order)
    assert " by threadgroup #" in str(error.value).splitlines()[0]


def test_the_message_names_the_other_threadgroup_and_both_lines():
    with pytest.raises(MslError) as error:
        run(PLAIN + "y[i % 64] =\n  x[i];")
    first, *places, last = str(error.value).splitlines()
    assert first == (
        "data race on device 'y'[0]: write, and an earlier write by threadgroup #0, which no "
        "barrier orders"
    )
    assert len(places) == 2
    assert last == "  at threadgroup (1,0,0) thread (0,0,0) simdgroup 0 lane 0"


WITHIN_A_THREADGROUP = {
    "write, then read": "tile[t] = x[i]; y[i] = tile[t ^ 1];",
    "read, then write": f"tile[t] = x[i]; {BARRIER} y[i] = tile[t ^ 1]; tile[t] = 0.0f;",
    "barrier of one simdgroup": f"tile[t] = x[i]; {SIMD_BARRIER} y[i] = tile[t ^ 32];",
    "barrier for other memory": f"tile[t] = x[i]; {DEVICE_BARRIER} y[i] = tile[t ^ 1];",
    "all read, one writes": f"{READ} {MEETING} if (t == 0) tile[0] = 1.0f;",
    "all read, one writes after its own simdgroup's barrier": (
        f"{READ} {MEETING} {SIMD_BARRIER} if (t == 0) tile[0] = 1.0f;"
    ),
    "reads on both sides of a barrier, then a write": (
        f"{READ} {BARRIER} if (t == 1) y[i] += tile[0]; {MEETING} if (t == 0) tile[0] = 1.0f;"
    ),
    "reads on both sides of a simdgroup's barrier, then a write": (
        f"{FILL} if (t < 32) {{ y[i] = tile[0]; {SIMD_BARRIER}\n"
        "if (t == 1) y[i] += tile[0]; if (t == 2) tile[0] = 1.0f; }"
    ),
    "matrix store, then load": (
        "simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);\n"
        "if (t < 32) { simdgroup_store(m, tile); simdgroup_load(m, tile); } y[i] = 0.0f;"
    ),
}


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("name", WITHIN_A_THREADGROUP)
def test_races_within_a_threadgroup(name, order):
    # Threads that come first may read what is not yet written.
    with pytest.raises(MslError, match=r"data race on threadgroup|uninitialised threadgroup"):
        run(LOCAL + WITHIN_A_THREADGROUP[name], order)


NO_RACE = {
    "own element": "y[i] = x[i]; y[i] += 1.0f;",
    "threadgroup barrier": f"tile[t] = x[i]; {BARRIER} y[i] = tile[63 - t];",
    "device barrier": f"y[i] = x[i]; {DEVICE_BARRIER} if (t == 0) y[i] = y[i + 63];",
    "simdgroup barrier": f"tile[t] = x[i]; {SIMD_BARRIER} y[i] = tile[t ^ 1];",
    "all read": "y[i] = x[0]; tile[t] = x[5];",
    "threadgroup memory is each threadgroup's own": "tile[t] = x[i]; y[i] = tile[t];",
    "members of a structure": (
        "struct Pair { float a, b; }; threadgroup Pair pairs[32];\n"
        "if (t < 32) pairs[t].a = x[i]; else pairs[t - 32].b = x[i];\n"
        "y[i] = t < 32 ? pairs[t].a : pairs[t - 32].b;"
    ),
    "matrix store, barrier, load": (
        "simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);\n"
        f"if (t < 32) {{ simdgroup_store(m, tile); {SIMD_BARRIER} simdgroup_load(m, tile); }}\n"
        "y[i] = m.thread_elements()[0];"
    ),
}


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("name", NO_RACE)
def test_no_race(name, order):
    run(LOCAL + NO_RACE[name], order, init_value=None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y[i] = x[i + 1];", r"out of bounds: read of 4 bytes, device 'x'\[128\], which has 128"),
        ("y[i] = x[int(i) - 1];", r"device 'x'\[-1\]"),
        ("y[i] = *(const device float*)(x + 5000000);", "read of 4 bytes"),
        ("y[i] = float(1 / int(i - i));", "integer division by zero"),
        ("y[i] = float(2147483647 + int(i));", r"signed overflow in \+ \(race.metal:2"),
        ("y[i] = float(int(x[i] * 1e12f));", "float to integer: value out of range"),
        ("y[i] = float(1 << (40 + i));", "shift count out of range"),
        ("if (i != 7) y[i] = 1.0f;", r"1 of 128 elements were never written \(first: 7\)"),
        ("y[i] = 0.0f; y[i] += y[127 - i];", "data race|uninitialised"),
    ],
)
def test_other_errors(body, message):
    with pytest.raises(MslError, match=message):
        run(PLAIN + body, init_value=None)

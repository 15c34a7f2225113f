"""The type check: what Metal's compiler refuses and other C++ compilers take."""

import numpy as np
import pytest

from metal_on_cpu import Kernel, MslError, Spec
from metal_on_cpu.samples import DTYPES, samples

pytestmark = pytest.mark.usefixtures("compiler")

VECTOR = Spec((16,), np.float32)


def check(body: str, header: str = "", dtype=np.float32, **options) -> None:
    kernel = Kernel("checked", ["x"], ["y"], body, header, **options)
    kernel.check([Spec((16,), dtype)], [], [dtype], small_inputs=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_samples_compile_whatever_the_inputs_sizes(dtype):
    for kernel, case in samples(dtype).values():
        warnings, small_input_errors = kernel.check(**case.check_arguments)
        assert warnings == ""
        assert small_input_errors == []


def test_small_inputs_are_constant():
    kernel = Kernel(
        "small",
        ["x", "b"],
        ["y"],
        "uint i = thread_position_in_grid.x; y[i] = x[i] + first(b);",
        "inline float first(const device float* p) { return p[0]; }\n",
    )
    result = kernel.check([VECTOR, VECTOR], [], [np.float32])
    assert len(result.small_input_errors) == 1
    assert result.small_input_errors[0].startswith("if 'b' had fewer than 8 elements: ")
    with pytest.raises(MslError, match="no matching function for call to 'first'"):
        kernel.check([VECTOR, Spec((7,), np.float32)], [], [np.float32])


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("", "const float* p = x; y[0] = p[0];"),
        ("inline float get(const float* p) { return p[0]; }\n", "y[0] = get(x);"),
        ("template <typename T> T get(const T* p) { return p[0]; }\n", "y[0] = get(x);"),
        ("struct Row { const float* p; };\n", "Row row; row.p = x; y[0] = row.p[0];"),
    ],
    ids=["variable", "parameter", "template", "member"],
)
def test_pointers_without_address_space(header, body):
    with pytest.raises(MslError, match="without an address space: p "):
        check(body, header)


def test_copied_structures_are_no_pointers():
    """Their implicit constructors take generic references, in clang's syntax tree."""
    header = (
        "struct Pair {\n  float a; float b;\n"
        "  Pair plus(float c) const thread { return {a + c, b}; }\n};\n"
    )
    check("Pair p{x[0], x[1]}; Pair q = p; thread Pair& r = q; y[0] = r.plus(1.0f).a;", header)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y[0] = double(x[0]);", "use of type 'double'"),
        ("y[0] = max(x[0], 0);", "call to 'max' is ambiguous"),
        ("threadgroup float t = 0.0f; y[0] = t;", "must be defined by itself.*float t = 0.0f"),
        ("y[0] = simd_sum(long(x[0]));", "no 64-bit and no bool operands"),
        ("simdgroup_matrix<float, 4, 4> m; y[0] = x[0];", "simdgroup_matrix is 8x8"),
        ("y[0] = missing;", r"checked\.metal:1:8: error: use of undeclared identifier 'missing'"),
    ],
)
def test_errors_of_metal(body, message):
    with pytest.raises(MslError, match=message):
        check(body)


def test_bfloat_needs_a_cast():
    with pytest.raises(MslError, match=r"implicit conversion.*'float' to 'bfloat"):
        check("y[0] = float(x[0]) * 2.0f;", dtype=DTYPES[2])
    check("y[0] = bfloat(float(x[0]) * 2.0f);", dtype=DTYPES[2])


def test_the_result_is_remembered_with_its_error(tmp_path, monkeypatch):
    monkeypatch.setenv("METAL_ON_CPU_CACHE", str(tmp_path))
    messages = []
    for _ in range(2):
        with pytest.raises(MslError) as error:
            check("y[0] = missing;")
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert len(list(tmp_path.glob("checked-*.check.json"))) == 1

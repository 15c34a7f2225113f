"""The translation to CUDA: its text."""

import re

import pytest

from mlx_tlstm.kernels import library
from mlx_tlstm.kernels.cuda import ATTRIBUTES, cuda_body


def test_address_spaces_and_threadgroup_variables():
    body = cuda_body(
        "threadgroup float tile[4][2]; threadgroup PACKED T last; const device float* p = x;\n"
        "tile[0][0] = p[thread_index_in_simdgroup];\n"
        "threadgroup_barrier(mem_flags::mem_threadgroup);"
    )
    assert body == (
        "  const uint thread_index_in_simdgroup = msl_thread_index_in_simdgroup();\n"
        "__shared__ __align__(16) float tile[4][2]; __shared__ __align__(16) PACKED T last; "
        "const  float* p = x;\n"
        "tile[0][0] = p[thread_index_in_simdgroup];\n"
        "threadgroup_barrier(mem_flags::mem_threadgroup);"
    )


@pytest.mark.parametrize(
    "definition",
    [
        "threadgroup float a[4] = {0};",
        "threadgroup float a{2 * n};",
        "threadgroup float a(2 * n);",
        "threadgroup float a[2 * n] = {};",
        "threadgroup T a, b;",
        "threadgroup T a, *b;",
        "threadgroup T a[2 * n], b;",
        "threadgroup vec<T, 4> a[2];",
        "threadgroup vec<T, 2 * N> a;",
        "threadgroup Pack<T> a;",
        "threadgroup Pair<const device float*, T> a;",
        "threadgroup metal::atomic_int a[2 * n];",
        "threadgroup unsigned int a;",
        "threadgroup __attribute__((aligned(16))) float a[4];",
        "threadgroup alignas(16) float a;",
        "threadgroup [[maybe_unused]] float a[4];",
        "float threadgroup a[4];",
        "threadgroup float a[b[2]];",
        "threadgroup float a [2 * n];",
        "threadgroup float\n  a[4];",
        "threadgroup /* of all */ float a;",
        "threadgroup float // of all\n  a;",
        "threadgroup float a[2 * n]",
    ],
)
@pytest.mark.parametrize("place", ["{}", "int i; {}", "threadgroup float b;\nif (c) {{ {} }}"])
def test_no_threadgroup_variable_becomes_a_threads_own(definition, place):
    with pytest.raises(ValueError, match=r"must be defined by itself.* but got 'threadgroup"):
        cuda_body(place.format(definition))


@pytest.mark.parametrize(
    "body",
    [
        "threadgroup float* p = a;",
        "threadgroup float *p;",
        "threadgroup T* const p = &a[2];",
        "threadgroup const float& r = a[0];",
        "threadgroup Pack<T>* p = (threadgroup Pack<T>*)(a + 1), q[2];",
        "f((threadgroup vec<T, 4>*)a, (const threadgroup metal::uint*)b);",
        "for (threadgroup float* p = a; p < end; p++) {}",
    ],
)
def test_pointers_and_references_lose_the_word_alone(body):
    assert cuda_body(body) == body.replace("threadgroup", "")


def test_attributes_are_whole_words():
    body = cuda_body("y[0] = my_thread_position_in_grid + threadgroups_per_grid.x;")
    assert re.findall(r"msl_\w+", body) == ["msl_threadgroups_per_grid"]


def test_every_attribute_has_a_function():
    for name, kind in ATTRIBUTES.items():
        assert f"MSL_D {kind} msl_{name}() " in library.source("cuda.h")

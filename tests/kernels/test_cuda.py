"""The translation to CUDA: its text."""

import re

from mlx_tlstm.kernels import library
from mlx_tlstm.kernels.cuda import ATTRIBUTES, cuda_body


def test_address_spaces_and_threadgroup_variables():
    body = cuda_body(
        "threadgroup float tile[4][2], last; const device float* p = x;\n"
        "tile[0][0] = p[thread_index_in_simdgroup]; // device\n"
        "threadgroup_barrier(mem_flags::mem_threadgroup);"
    )
    assert body == (
        "  const uint thread_index_in_simdgroup = msl_thread_index_in_simdgroup();\n"
        "__shared__ __align__(16) float tile[4][2];__shared__ __align__(16) float last; "
        "const  float* p = x;\n"
        "tile[0][0] = p[thread_index_in_simdgroup]; // device\n"
        "threadgroup_barrier(mem_flags::mem_threadgroup);"
    )


def test_attributes_are_whole_words():
    body = cuda_body("y[0] = my_thread_position_in_grid + threads_per_threadgroup.x;")
    assert re.findall(r"msl_\w+", body) == ["msl_threads_per_threadgroup"]


def test_every_attribute_has_a_function():
    for name, kind in ATTRIBUTES.items():
        assert f"MSL_D {kind} msl_{name}() " in library.source("cuda.h")

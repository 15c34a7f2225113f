"""The translation to CUDA: its text."""

import re

import numpy as np
import pytest
from metal_on_cpu.cuda import CUDA_TYPES
from metal_on_cpu.samples import DTYPES, conv2d, conv2d_case, samples

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


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_source_as_mlx_builds_it(dtype):
    case = conv2d_case(2, 4, 5, 20, 37, (3, 3), dtype)
    text, name = conv2d().cuda_source(**case.check_arguments)
    cuda_type = CUDA_TYPES[dtype.name]
    assert name.startswith("custom_kernel_conv2d_float" if dtype == np.float32 else "custom_kernel")
    assert f"__global__ void {name}(\n    const {cuda_type}* x,\n" in text
    assert "    const __grid_constant__ Shape x_shape,\n" in text
    assert f"  using T = {cuda_type};\n  constexpr int H = 4;\n" in text
    assert "__shared__ __align__(16) T As[BM * LDA];" in text
    kernel = re.sub(r"//.*", "", text[text.index("__global__ void") :])
    assert not re.search(r"\b(device|constant|thread|threadgroup)\b", kernel)


def test_samples_translate():
    for kernel, case in samples().values():
        text, name = kernel.cuda_source(**case.check_arguments)
        assert text.count("__global__") == 1
        assert name in text

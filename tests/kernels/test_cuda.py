"""The translation to CUDA: its text, and the algebra of its 8x8 matrices on 32 simulated lanes."""

import re

import numpy as np
import pytest
from metal_on_cpu.cuda import CUDA_TYPES
from metal_on_cpu.samples import DTYPES, conv2d, conv2d_case, samples

from mlx_tlstm.kernels import library
from mlx_tlstm.kernels.cuda import ATTRIBUTES, cuda_body

LANES = np.arange(32)
#: The prelude's layout: the row and the first of two columns of each lane.
ROW, COLUMN = LANES // 4, LANES % 4 * 2
#: The PTX manual's names for the parts of a lane's number.
GROUP, THREAD = LANES // 4, LANES % 4


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


def _fragment(matrix):
    return np.stack([matrix[ROW, COLUMN], matrix[ROW, COLUMN + 1]], 1)


def _matrix(fragment):
    matrix = np.zeros((8, 8))
    matrix[ROW, COLUMN], matrix[ROW, COLUMN + 1] = fragment.T
    return matrix


def _accumulate(c, product):
    """The accumulators of mma.m16n8k8: four values a lane."""
    rows = np.stack([product[GROUP, 2 * THREAD + i] for i in (0, 1)], 1)
    lower = np.stack([product[GROUP + 8, 2 * THREAD + i] for i in (0, 1)], 1)
    return c + np.concatenate([rows, lower], 1)


def _mma_tf32(a, b, c):
    """mma.m16n8k8 with tf32 operands, by the PTX manual's layout: a has 4 values a lane, b 2."""
    left, right = np.zeros((16, 8)), np.zeros((8, 8))
    for i in range(4):
        left[GROUP + i % 2 * 8, THREAD + i // 2 * 4] = a[:, i]
    for i in range(2):
        right[THREAD + i * 4, GROUP] = b[:, i]
    return _accumulate(c, left @ right)


def _mma_half(a, b, c):
    """mma.m16n8k8 with 16-bit operands: a has 2 registers of 2 values a lane, b 1."""
    left, right = np.zeros((16, 8)), np.zeros((8, 8))
    for i in range(4):
        left[GROUP + i // 2 * 8, 2 * THREAD + i % 2] = a[:, i]
    for i in range(2):
        right[2 * THREAD + i, GROUP] = b[:, i]
    return _accumulate(c, left @ right)


@pytest.fixture
def matrices():
    generator = np.random.default_rng(0)
    return [generator.normal(size=(8, 8)) for _ in range(3)]


def test_multiplication_by_shuffles(matrices):
    a, b, c = (_fragment(matrix) for matrix in matrices)
    for k in range(8):
        left = a[(LANES & ~3) | k // 2, k & 1]
        for i in range(2):
            c[:, i] += left * b[k * 4 | (LANES & 3), i]
    np.testing.assert_allclose(_matrix(c), matrices[0] @ matrices[1] + matrices[2])


def test_multiplication_in_tf32(matrices):
    a, b, c = (_fragment(matrix) for matrix in matrices)
    source = 8 * THREAD + GROUP // 2
    permuted = np.stack(
        [np.where(GROUP & 1, b[source + 4 * i, 1], b[source + 4 * i, 0]) for i in (0, 1)], 1
    )
    zero = np.zeros(32)
    result = _mma_tf32(
        np.stack([a[:, 0], zero, a[:, 1], zero], 1),
        permuted,
        np.concatenate([c, np.zeros((32, 2))], 1),
    )
    np.testing.assert_allclose(_matrix(result[:, :2]), matrices[0] @ matrices[1] + matrices[2])


def test_multiplication_in_half(matrices):
    a, b, c = _fragment(matrices[0]), _fragment(matrices[1].T), _fragment(matrices[2])
    lower = np.zeros((32, 2))
    result = _mma_half(np.concatenate([a, lower], 1), b, np.concatenate([c, lower], 1))
    np.testing.assert_allclose(_matrix(result[:, :2]), matrices[0] @ matrices[1] + matrices[2])

"""What plain operations compute in another way on a CPU, where MLX's own way is slow.

On other devices :func:`tanh`, :func:`transposed` and :func:`channel_mean` are MLX's operations.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_tlstm import blas

_ON_X86 = platform.machine().lower() in ("x86_64", "amd64")

# Odd rational minimax approximation of tanh in float32, numerator x·p(x²), denominator q(x²),
# ascending powers; the coefficients are those of Eigen's generic fast tanh. Largest error 4e-7.
# At the limit it rounds to 1, so that a gate that is saturated is open or closed to the last bit.
_LIMIT = 7.93869161605835
_NUMERATOR = (
    4.89352455891786e-03,
    6.37261928875436e-04,
    1.48572235717979e-05,
    5.12229709037114e-08,
    -8.60467152213735e-11,
    2.00018790482477e-13,
    -2.76076847742355e-16,
)
_DENOMINATOR = (
    4.89352518554385e-03,
    2.26843463243900e-03,
    1.18534705686654e-04,
    1.19825839466702e-06,
)


def _polynomial(coefficients: tuple[float, ...], powers: Sequence[mx.array]) -> mx.array:
    """A polynomial of x from the powers x, x², x⁴, …, its terms joined by pairs."""
    terms: list[float | mx.array] = list(coefficients)
    for power in powers:
        pairs = zip(terms[::2], terms[1::2], strict=False)
        last = terms[-1:] if len(terms) % 2 else []
        terms = [low + high * power for low, high in pairs] + last
    return terms[0]


def rational_tanh(x: mx.array) -> mx.array:
    """tanh of float32 ``x`` within 4e-7, by arithmetic alone."""
    # The C++ compiler vectorises the comparisons and the arithmetic as two loops, not as one, and
    # mx.clip not at all. The reshape makes mx.compile part the two. Terms are joined by pairs so
    # that the arithmetic is not parted again: mx.compile limits how deep a loop's expression is.
    x_limited = mx.where(x > _LIMIT, _LIMIT, mx.where(x < -_LIMIT, -_LIMIT, x))
    flat = x_limited.reshape(-1)
    square = mx.square(flat)
    fourth = mx.square(square)
    powers = (square, fourth, mx.square(fourth))
    tanh = flat * _polynomial(_NUMERATOR, powers) / _polynomial(_DENOMINATOR, powers[:2])
    return tanh.reshape(x.shape)


def _on_cpu() -> bool:
    return mx.default_device().type == mx.cpu


def tanh(x: mx.array) -> mx.array:
    """tanh of float32 ``x``.

    MLX's CPU build for x86 calls the C library once for each element (12-18 ns). There, a rational
    function made of plain arithmetic, which the compiler vectorises, takes a third of the time.
    """
    return rational_tanh(x) if _ON_X86 and _on_cpu() else mx.tanh(x)


def transposed(weight: mx.array) -> mx.array:
    """A weight ``[O, …]`` as the matrix ``[…, O]`` that rows are multiplied by.

    Taken once a sequence: MLX's reference BLAS on Linux multiplies by a transposed view at half
    the speed, so that a copy pays there: by joining halves, since ``mx.export_function`` cannot
    write ``mx.contiguous``.
    """
    matrix = weight.reshape(weight.shape[0], -1).T
    half = len(matrix) // 2
    slow = _on_cpu() and not blas.is_fast()
    return mx.concatenate([matrix[:half], matrix[half:]]) if slow else matrix


@functools.lru_cache(maxsize=64)
def _mean_weights(size: int) -> mx.array:
    return mx.array(np.full((size, 1), 1 / size, np.float32))


def channel_mean(x: mx.array) -> mx.array:
    """Mean over the last axis, which is kept: as a product, since a sum is a chain of additions."""
    return x @ _mean_weights(x.shape[-1]) if _on_cpu() else mx.mean(x, axis=-1, keepdims=True)

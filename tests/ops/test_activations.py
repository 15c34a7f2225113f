"""tanh by arithmetic, as MLX runs it and as ``mx.compile`` does."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_tlstm.ops.cpu import rational_tanh


@pytest.fixture(params=[rational_tanh, mx.compile(rational_tanh)], ids=["plain", "compiled"])
def tanh(request):
    return request.param


def test_error(tanh):
    """What the docstring promises; 400,001 numbers, most of them where tanh bends."""
    x = np.concatenate([np.linspace(-12, 12, 200_001), np.linspace(-1, 1, 200_000)])
    x = x.astype(np.float32)
    error = np.abs(np.array(tanh(mx.array(x))) - np.tanh(x.astype(np.float64)))
    assert error.max() <= 4e-7


def test_saturates_exactly(tanh):
    """Memory behind a gate that is open holds for good only where the gate is 1 to the last bit."""
    x = mx.array([8.0, 20.0, 1e30, math.inf, -8.0, -20.0, -math.inf])
    assert tanh(x).tolist() == [1, 1, 1, 1, -1, -1, -1]
    assert mx.max(mx.abs(tanh(mx.linspace(7, 9, 100_001)))).item() <= 1


def test_is_odd_and_keeps_nan(tanh):
    x = mx.array([0.0, 1e-20, 0.3, 5.0])
    assert tanh(-x).tolist() == (-tanh(x)).tolist()
    assert math.isnan(tanh(mx.array([math.nan])).item())

"""Tiles that were measured to be the fastest: stored, looked up, and what runs without."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import pytest
from kernel_devices import claims_gpu

from mlx_tlstm.kernels import convolution, tuning
from mlx_tlstm.kernels.tiles import CANDIDATES
from mlx_tlstm.kernels.tuning import Product

PRODUCTS = [
    Product(convolution.FORWARD.name, mx.float32, 12, 41, 72),
    Product(convolution.INPUT_GRADIENT.name, mx.float32, 14, 8, 369),
    Product(convolution.WEIGHT_GRADIENT.name, mx.float32, 41, 73, 96),
]


@pytest.mark.parametrize(
    ("architecture", "cuda", "macos", "product"),
    [
        ("applegpu_g13g", False, "26.2", False),
        ("applegpu_g16s", False, "26.2", False),
        ("applegpu_g17g", False, "26.2", True),
        ("applegpu_g17s", False, "27.0.1", True),
        ("applegpu_g17s", False, "16.2", True),  # what a Python built before macOS 26 is told
        ("applegpu_g17s", False, "26.1", False),
        ("applegpu_g17s", False, "15.7.1", False),
        ("applegpu_g17p", False, "26.2", False),  # A19, which MLX leaves out
        ("applegpu_g18p", False, "26.2", True),
        ("air64_v27", False, "26.2", False),
        ("", False, "26.2", False),
        ("sm_90", True, "", True),
    ],
)
def test_what_runs_before_anything_is_tuned(
    stored_tiles, monkeypatch, architecture, cuda, macos, product
):
    claims_gpu(monkeypatch, architecture, cuda, macos)
    for one in PRODUCTS:
        assert (tuning.select(one) is None) == product
        tuning.store({one: CANDIDATES[0]})
        assert tuning.select(one) == CANDIDATES[0]
    tuning._choice.cache_clear()


@pytest.mark.parametrize(
    ("architecture", "cuda", "macos", "full"),
    [("applegpu_g17g", False, "26.2", False), ("sm_90", True, "", True)],
)
def test_units_that_take_float32_as_tf32_only(
    stored_tiles, monkeypatch, architecture, cuda, macos, full
):
    """Apple's; winners with TF32 and without are measured and kept one beside the other."""
    claims_gpu(monkeypatch, architecture, cuda, macos)
    one, half = PRODUCTS[0], dataclasses.replace(PRODUCTS[0], dtype=mx.bfloat16)
    assert tuning.select(one) is tuning.select(half) is None
    tuning.store({one: CANDIDATES[1]})
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    assert (tuning.select(one) is None) == full
    assert tuning.select(half) is None
    tuning.store({one: CANDIDATES[0]})
    assert tuning.select(one) == CANDIDATES[0]
    monkeypatch.delenv("MLX_ENABLE_TF32")
    assert tuning.select(one) == CANDIDATES[1]
    tuning._choice.cache_clear()


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("2x", True), ("0", False), ("", False), ("off", False)]
)
def test_the_setting_is_read_as_mlx_reads_it(monkeypatch, value, on):
    monkeypatch.setenv("MLX_ENABLE_TF32", value)
    assert tuning.tf32_is_on() == on


def test_a_choice_is_looked_up_once(stored_tiles, monkeypatch):
    one = PRODUCTS[0]
    tuning.store({one: None})
    assert tuning.select(one) is None
    stored_tiles.unlink()
    assert tuning.select(one) is None
    monkeypatch.setenv(tuning.ENVIRONMENT_VARIABLE, str(stored_tiles.with_name("other.json")))
    assert tuning.select(one) is not None


@pytest.mark.parametrize("content", [b"[]", b'{"a": []}', b"{", b"\xff", b"[" * 200_000])
def test_damaged_tuning(stored_tiles, content):
    stored_tiles.parent.mkdir()
    stored_tiles.write_bytes(content)
    for read in (lambda: tuning.store({}), lambda: tuning.select(PRODUCTS[0])):
        with pytest.raises(ValueError, match=r"tuning\.json' must be what scripts/tune\.py wrote"):
            read()

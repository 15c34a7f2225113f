"""The tuning script, from its command line to the tiles that a layer then launches."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
import tune
from benchmarking import tile_search
from click.testing import CliRunner
from kernel_devices import computes_wrong
from mlx import nn

from mlx_tlstm import TLSTM
from mlx_tlstm.checking.timing import Timing
from mlx_tlstm.kernels import convolution, tuning
from mlx_tlstm.kernels.tiles import CANDIDATES, Tile
from mlx_tlstm.kernels.tuning import Product

SIZE = "2x3,M=8,B=2,T=3"
FORWARD = convolution.FORWARD.name
INPUT_GRADIENT = convolution.INPUT_GRADIENT.name
WEIGHT_GRADIENT = convolution.WEIGHT_GRADIENT.name
QUICK = pytest.mark.standin(mode="fast", check=False)

# B·P = 12 rows, 9 taps, O = 4 · 8 + 9; B·(P + 1) rows read the gradient.
PRODUCTS = {
    FORWARD: Product(FORWARD, mx.float32, 12, 41, 72),
    INPUT_GRADIENT: Product(INPUT_GRADIENT, mx.float32, 14, 8, 369),
    WEIGHT_GRADIENT: Product(WEIGHT_GRADIENT, mx.float32, 41, 73, 96),
}


def run(*arguments: str):
    quick = ("--rounds", "1", "--launches", "2")
    return CliRunner().invoke(tune.main, ["--size", SIZE, *quick, *arguments])


@pytest.fixture
def winners(monkeypatch) -> dict[str, Tile | None]:
    """Which candidate of each kernel shall be the fastest, of the two smallest tiles."""
    monkeypatch.setattr(tile_search, "CANDIDATES", CANDIDATES[-2:])
    chosen: dict[str, Tile | None] = {}
    order = iter(PRODUCTS)

    def measure(candidates, **options):
        kernel = next(order, None)
        if kernel is None:
            raise KeyboardInterrupt
        wanted = chosen[kernel]
        assert wanted in candidates
        return {c: Timing((1.0 if c == wanted else 2.0,), 0) for c in candidates}

    monkeypatch.setattr(tile_search, "measure", measure)
    return chosen


@QUICK
def test_measures_stores_and_reports(kernel_calls, stored_tiles, tmp_path):
    result = run("--json", str(tmp_path / "record.json"))
    assert result.exit_code == 0, result.output
    assert f"stored in {stored_tiles}" in result.output
    assert f"{PRODUCTS[FORWARD]}: 64x64x16 left out" in result.output
    # 16x16x64 and MLX's own product at least were timed.
    [row] = [line for line in result.output.splitlines() if "12x41x72  " in line]
    assert row.split()[2:8] == ["–"] * 6
    assert all(float(cell) > 0 for cell in row.split()[8:11])
    of_device = json.loads(stored_tiles.read_text())[tuning.device()]
    assert of_device.keys() == {str(product) for product in PRODUCTS.values()}
    record = json.loads((tmp_path / "record.json").read_text())
    assert [p["product"] for p in record["products"]] == [str(p) for p in PRODUCTS.values()]
    assert record["facts"]["device"] == tuning.device()


@QUICK
def test_a_layer_launches_the_stored_winners(kernel_calls, stored_tiles, winners):
    if mx.default_device() == mx.gpu:
        pytest.skip("launches are recorded by the stand-in")
    small = CANDIDATES[-2]
    # Not what the table would choose for this size.
    table = tuning.select(PRODUCTS[FORWARD])
    assert table not in (small, None)
    winners |= {FORWARD: small, INPUT_GRADIENT: None, WEIGHT_GRADIENT: small}
    assert run().exit_code == 0
    layer = TLSTM(5, 8, (2, 3))
    x = mx.random.normal((2, 3, 5))
    kernel_calls.clear()
    mx.eval(nn.value_and_grad(layer, lambda x: layer(x)[0].sum())(x))
    launched = {call.kernel: call for call in kernel_calls}
    for kernel in (FORWARD, WEIGHT_GRADIENT):
        sizes = {name: launched[kernel].template[name] for name in small.template}
        assert sizes == small.template
    assert launched[WEIGHT_GRADIENT].template["STEPS"] == 3 + layer.delay
    assert INPUT_GRADIENT not in launched
    assert "convolution_fold" in launched


@QUICK
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_types_have_winners_of_their_own(kernel_calls, stored_tiles, winners, dtype):
    winners |= dict.fromkeys(PRODUCTS, CANDIDATES[-1])
    result = run("--dtype", dtype, "--no-memory-convolution")
    assert result.exit_code == 0, result.output
    names = json.loads(stored_tiles.read_text())[tuning.device()].keys()
    assert f"{FORWARD} {dtype} 12x32x72" in names


@QUICK
@pytest.mark.parametrize(
    ("wrong_kernel", "name"), [(INPUT_GRADIENT, "16x16x64"), ("convolution_fold", "MLX")]
)
def test_wrong_numbers_are_neither_timed_nor_stored(
    kernel_calls, stored_tiles, monkeypatch, wrong_kernel, name
):
    def of_one_tile(inputs, template, **_):
        return template.get("BM") in (16, None)

    computes_wrong(monkeypatch, wrong_kernel, 1, 1.001, of_one_tile)
    monkeypatch.setattr(tile_search, "measure", lambda *_, **__: pytest.fail("timed wrong numbers"))
    result = run()
    assert result.exit_code == 1
    message = f"{PRODUCTS[INPUT_GRADIENT]} as {name} differs from plain operations"
    assert message in result.output
    assert not stored_tiles.exists()


@QUICK
def test_an_interrupted_run_keeps_what_it_stored(kernel_calls, stored_tiles, winners):
    winners |= dict.fromkeys(PRODUCTS, None)  # the second size interrupts
    result = run("--size", "3,M=8,B=2,T=3")
    assert result.exit_code == 130
    assert "Interrupted" in result.output
    products = json.loads(stored_tiles.read_text())[tuning.device()]
    assert products[str(PRODUCTS[FORWARD])] is None
    assert len(products) == len(PRODUCTS)


@QUICK
def test_a_dry_run_stores_nothing(kernel_calls, stored_tiles, winners):
    winners |= dict.fromkeys(PRODUCTS, None)
    assert run("--dry-run").exit_code == 0
    assert not stored_tiles.exists()


@QUICK
def test_output_names_another_file(kernel_calls, stored_tiles, winners, tmp_path):
    winners |= dict.fromkeys(PRODUCTS, None)
    other = tmp_path / "other.json"
    assert run("--output", str(other)).exit_code == 0
    assert not stored_tiles.exists()
    assert str(PRODUCTS[FORWARD]) in json.loads(other.read_text())[tuning.device()]


def test_without_kernels_there_is_nothing_to_tune(stored_tiles):
    result = run()
    assert result.exit_code == 1
    assert "nothing to tune: the default device is" in result.output
    assert not stored_tiles.exists()

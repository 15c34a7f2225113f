"""The benchmark's tables of layers, kernels and pieces, on small ones."""

from __future__ import annotations

import json

import benchmark
import mlx.core as mx
import numpy as np
import pytest
from benchmarking import kernel_times, layers, loops, piece_times
from benchmarking import sizes as sizing
from click.testing import CliRunner
from kernel_devices import claims_gpu
from layer_helpers import build

from mlx_tlstm import TLSTM
from mlx_tlstm.checking import chains, passes

# Two depths that are timed side by side, and a size of its own.
SIZES = ("1,M=8,B=2,T=3", "3,M=8,B=2,T=3", "2x3,M=8,B=2,T=4")


def run_benchmark(*arguments: str, sizes: tuple[str, ...] = SIZES) -> list[list[str]]:
    """Cells of each line of the output as Markdown."""
    sizes = [part for size in sizes for part in ("--size", size)]
    quick = ["--rounds", "2", "--warmup", "0", "--skip-torch", "--markdown"]
    result = CliRunner().invoke(benchmark.main, [*sizes, *quick, *arguments])
    assert result.exit_code == 0, result.output
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.output.splitlines()]


def test_layer_rows(tmp_path):
    path = tmp_path / "figures.json"
    lines = run_benchmark("--layers", "--dtype", "float16", "--json", str(path))
    names = [size.replace(",", ", ") for size in SIZES]
    tensor, stacked = ([line for line in lines if len(line) == n] for n in (13, 9))
    for rows in (tensor, stacked):
        header, _, *rows = rows
        assert [row[0] for row in rows] == names
        assert all(float(row[1]) > 0 for row in rows)
        # Of the two depths, the second is compared with the first.
        ratios = [row[header.index("to first")] for row in rows]
        assert ratios[::2] == ["–", "–"]
        assert float(ratios[1]) > 0
    header, _, *rows = tensor
    for row in rows:
        assert float(row[header.index("products")]) > 0
        assert row[7:11] == ["not run"] * 4
    recorded = json.loads(path.read_text())
    assert recorded["facts"]["TF32"].startswith("off")
    assert [len(group) for group in recorded["timings"].values()] == [6, 3]


def test_depth_rows(monkeypatch):
    """The stacked LSTM's depth and the tLSTM's, each beside its first."""
    monkeypatch.setattr(benchmark, "DEPTH_SIZES", [sizing.Size((P,), 8, 2, 3) for P in (1, 3)])
    lines = run_benchmark("--depth", sizes=())
    tensor, stacked = ([line for line in lines if len(line) == n] for n in (13, 9))
    for header, _, first, second in (tensor, stacked):
        column = header.index("to first")
        assert first[column] == "–"
        assert float(second[column]) > 0


@pytest.mark.parametrize(
    ("stop", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("out of memory"), 1)]
)
@pytest.mark.parametrize(
    ("option", "module", "function"),
    [
        ("--layers", layers, "measure"),
        ("--scan", loops, "measure"),
        ("--kernels", kernel_times, "step_costs"),
        ("--pieces", piece_times, "measure"),
    ],
)
def test_what_was_measured_until_then_is_told(
    option, module, function, stop, code, monkeypatch, tmp_path
):
    """Until Ctrl-C, or until a size is too large for the GPU's memory."""
    measuring, calls = getattr(module, function), []

    def once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise stop
        return measuring(*arguments, **options)

    monkeypatch.setattr(module, function, once)
    sizes = [] if option == "--scan" else ["--size", SIZES[0], "--size", SIZES[2]]
    path = tmp_path / "figures.json"
    quick = ["--rounds", "1", "--warmup", "0", "--skip-torch", "--json", str(path)]
    result = CliRunner().invoke(benchmark.main, [option, *sizes, *quick])
    assert result.exit_code == code
    first = "98" if option == "--scan" else "1, M=8, B=2, T=3"
    assert any(first in line and "T=4" not in line for line in result.output.splitlines())
    [(title, group)] = json.loads(path.read_text())["timings"].items()
    assert first in title
    assert len(group) > 0 or option == "--kernels"
    assert len(calls) == 2


def test_an_earlier_file_stays_where_nothing_was_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(layers, "measure", {}.pop)
    path = tmp_path / "figures.json"
    path.write_text("earlier")
    arguments = ["--size", SIZES[0], "--skip-torch", "--json", str(path)]
    assert CliRunner().invoke(benchmark.main, arguments).exit_code == 1
    assert path.read_text() == "earlier"


def test_bare_products_of_a_gpu_wait_for_one_another(monkeypatch):
    """Both floors multiply as much; on a GPU independent products would run side by side."""
    size, counted = sizing.Size((2, 3), 8, 2, 4), []
    layer = TLSTM(**size.settings())
    candidates = layers._Candidates(mx.float32, None)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    chained = chains.products_in_turn
    monkeypatch.setattr(
        chains, "products_in_turn", lambda *given: counted.append(given) or chained(*given)
    )
    candidates._products(size, layer)()
    [(problem, steps)] = counted
    assert (problem.rows, problem.channels, steps) == (12, 4 * 8 + 9, 4 + layer.delay)


def test_kernel_rows_without_kernels():
    rows = [line for line in run_benchmark("--kernels") if len(line) == 9][2:]
    assert len(rows) == 5 * len(SIZES)
    assert all(row[3] == "not run" for row in rows)
    moved, least = ([float(row[i]) for row in rows] for i in (6, 7))
    assert all(a >= b for a, b in zip(moved, least, strict=True))
    assert max(least) > 0


@pytest.mark.standin(mode="fast", check=False)
def test_kernel_rows(kernel_calls):
    rows = [line for line in run_benchmark("--kernels", sizes=SIZES[-1:]) if len(line) == 9][2:]
    assert all(float(row[3]) > 0 for row in rows)
    shares = [row[4] for row in rows]
    assert shares == [s if s.endswith(" %") else "–" for s in shares]
    assert [s == "–" for s in shares] == [False, False, False, True, True]
    assert [row[5] for row in rows] == ["1", "1", "0.125", "1", "1"]


def test_piece_rows():
    rows = [line for line in run_benchmark("--pieces", sizes=SIZES[-1:]) if len(line) == 5][2:]
    *pieces, together, _, step = rows
    times = [float(row[2]) for row in pieces]
    assert sum(times) == pytest.approx(float(together[2]), abs=len(times))
    assert step[3] == "100 %"
    # What a pass adds to its steps' pieces is little: sums, and the order in which they run.
    operations = sum(float(row[4]) for row in pieces)
    assert operations == pytest.approx(float(step[4]), abs=6)


def test_types_go_with_layers_and_kernels():
    result = CliRunner().invoke(benchmark.main, ["--scan", "--dtype", "bfloat16"])
    assert result.exit_code == 2
    assert "--dtype goes with --layers and --kernels" in result.output


@pytest.mark.parametrize(
    ("setting", "architecture", "cuda", "expected"),
    [
        (None, "applegpu_g17s", False, True),
        (None, "applegpu_g16s", False, False),
        (None, "sm_90", True, True),
        ("0", "sm_90", True, False),
        ("1", "applegpu_g17s", False, True),
    ],
)
def test_tf32(monkeypatch, setting, architecture, cuda, expected):
    claims_gpu(monkeypatch, architecture, cuda)
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    if setting is not None:
        monkeypatch.setenv("MLX_ENABLE_TF32", setting)
    assert sizing.tf32() == expected
    assert sizing.unit_roundoff(mx.float32) == (2.0**-11 if expected else 2.0**-24)
    assert sizing.unit_roundoff(mx.bfloat16) == 2.0**-8


@pytest.mark.parametrize("depth", [1, 3])
def test_stacked_lstm_of_pytorch_computes_the_same(depth):
    pytest.importorskip("torch", reason="PyTorch is not installed (extra: bench)")
    from benchmarking.pytorch_tlstm import stacked_pass

    layer, _ = build("stacked", depth)
    ours = passes.Pass(layer, 2, 5, input_size=layer.cell.input_size)
    arrays = {name: np.array(a) for name, a in passes.tree_flatten(layer.parameters())}
    x, cotangent = np.array(ours.x), np.array(ours.cotangent)
    outputs, gradients = stacked_pass({"depth": depth}, arrays, x, cotangent, "cpu")()
    y, _, d_x = ours.run()
    assert np.allclose(outputs.detach().numpy(), y, rtol=1e-5, atol=1e-6)
    assert np.allclose(gradients["x"].numpy(), d_x, rtol=1e-5, atol=1e-6)

"""Statistics and order of measurements, on a clock that the test moves itself; the benchmark's
tables of layers and kernels, on small ones."""

from __future__ import annotations

import json
import os
import subprocess

import benchmark
import mlx.core as mx
import numpy as np
import pytest
from benchmarking import layers
from benchmarking import sizes as sizing
from click.testing import CliRunner
from layer_helpers import build

from mlx_tlstm import TLSTM, blas
from mlx_tlstm.checking import chains, passes, timing
from mlx_tlstm.checking.timing import Timing, machine, measure, per_timestep_example


class FakeClock:
    """Moves only when a candidate runs, by the next of its durations in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, durations: list[float]):
        remaining = iter(durations)

        def run() -> None:
            self.calls.append(name)
            self.now += next(remaining)

        return run


def measure_on(clock: FakeClock, durations: dict[str, list[float]], **options):
    candidates = {name: clock.candidate(name, values) for name, values in durations.items()}
    return measure(candidates, pause=0.0, clock=clock, **options)


def test_rounds_are_interleaved_and_warmup_is_not_counted():
    clock = FakeClock()
    durations = {"a": [9.0, 0.002, 0.004], "b": [9.0, 0.003, 0.005], "c": [9.0, 0.001, 0.001]}
    timings = measure_on(clock, durations, rounds=2, warmup=1)
    assert "".join(clock.calls) == "abc" * 3
    assert list(timings) == ["a", "b", "c"]
    assert timings["a"].milliseconds == pytest.approx((2.0, 4.0))
    assert timings["b"].milliseconds == pytest.approx((3.0, 5.0))


def test_statistics():
    measured = Timing((5.0, 1.0, 4.0, 2.0, 3.0), peak_bytes=0)
    assert measured.median == 3.0
    assert measured.minimum == 1.0
    assert measured.quartiles == (2.0, 4.0)
    assert Timing((7.0,), peak_bytes=0).quartiles == (7.0, 7.0)


def test_ratio_is_taken_within_each_round():
    # The machine slows down tenfold in the second round, which the ratio must not show.
    ours = Timing((2.0, 20.0, 6.0), peak_bytes=0)
    theirs = Timing((1.0, 10.0, 2.0), peak_bytes=0)
    assert ours.ratio(theirs) == 2.0
    assert theirs.ratio(ours) == 0.5
    with pytest.raises(ValueError, match=r"\[Timing\] 'other' must be of 3 rounds"):
        ours.ratio(Timing((1.0,), peak_bytes=0))


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 1), (2.5, 3), (100.0, 4), (None, 4)])
def test_time_budget_ends_after_a_whole_round(seconds, rounds):
    clock = FakeClock()
    durations = {"a": [0.4] * 4, "b": [0.6] * 4}
    timings = measure_on(clock, durations, rounds=4, warmup=0, seconds=seconds)
    assert [len(t.milliseconds) for t in timings.values()] == [rounds, rounds]


def test_peak_memory_is_what_a_call_adds():
    held = mx.zeros((1 << 20,))
    mx.eval(held)
    timings = measure(
        {
            "nothing": lambda: None,
            "4 MiB": lambda: mx.eval(mx.zeros((1 << 20,)) + 1),
        },
        rounds=2,
        pause=0.0,
    )
    assert timings["nothing"].peak_bytes == 0
    assert 4 << 20 <= timings["4 MiB"].peak_bytes < 16 << 20
    del held


def test_unit_divides_by_inputs_and_examples():
    assert per_timestep_example(1260.0, length=42, batch_size=15) == 2.0


def test_measure_refuses():
    with pytest.raises(ValueError, match=r"\[measure\] 'candidates'"):
        measure({})
    with pytest.raises(ValueError, match=r"\[measure\] 'rounds'"):
        measure({"a": lambda: None}, rounds=0)
    with pytest.raises(ValueError, match=r"\[measure\] 'warmup'"):
        measure({"a": lambda: None}, warmup=-1)


def test_timing_as_json():
    text = json.dumps(Timing((1.0, 3.0), peak_bytes=5).as_dict())
    assert json.loads(text) == {
        "milliseconds": [1.0, 3.0],
        "peak_bytes": 5,
        "median": 2.0,
        "minimum": 1.0,
        "quartiles": [1.5, 2.5],
    }


def test_machine_names_versions_and_no_host(monkeypatch):
    monkeypatch.setattr(timing, "_commit", lambda folder: "0123456789ab")
    here = machine()
    assert here.mlx == mx.__version__
    assert here.cores >= 1
    assert here.device.startswith(("cpu", "gpu"))
    assert os.uname().nodename not in vars(here).values()


def test_slow_blas_is_told(monkeypatch):
    monkeypatch.setattr(timing, "_commit", lambda folder: None)
    monkeypatch.setattr(timing.platform, "system", lambda: "Linux")
    monkeypatch.setattr(blas, "is_fast", lambda: False)
    before = mx.default_device()
    try:
        mx.set_default_device(mx.cpu)
        assert machine().slow_blas
    finally:
        mx.set_default_device(before)


def test_commit_of_a_checkout(tmp_path):
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]

    def git(*arguments: str) -> None:
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    assert timing._commit(tmp_path) is None
    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    commit = timing._commit(tmp_path)
    assert len(commit) == 12
    (tmp_path / "file").write_text("2")
    assert timing._commit(tmp_path) == f"{commit} + changes"
    # A package that lies below some other checkout, such as in a virtual environment.
    (tmp_path / "inside").mkdir()
    assert timing._commit(tmp_path / "inside") is None


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


def test_bare_products_of_a_gpu_wait_for_one_another(monkeypatch):
    """Both floors multiply as much; on a GPU independent products would run side by side."""
    size, counted = sizing.Size((2, 3), 8, 2, 4), []
    layer = TLSTM(**size.settings())
    candidates = layers._Candidates(mx.float32, None)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    chained = chains.bare_products
    monkeypatch.setattr(
        chains, "bare_products", lambda *arguments: counted.append(arguments) or chained(*arguments)
    )
    candidates._products(size, layer)()
    [(problem, steps)] = counted
    assert (problem.rows, problem.channels, steps) == (12, 4 * 8 + 9, 4 + layer.delay)


def test_operations_of_a_step_grow_with_a_stacked_lstm_only():
    tensor = [passes.operations_per_step(TLSTM(4, 7, (P,), norm="channel")) for P in (2, 6)]
    # Additions over steps that mx.compile joins, so many at a time.
    assert tensor[0] == pytest.approx(tensor[1], abs=0.5)
    stacked = [passes.operations_per_step(build("stacked", L)[0]) for L in (2, 4, 6)]
    assert stacked[2] - stacked[1] == pytest.approx(stacked[1] - stacked[0], abs=0.5)
    assert min(tensor[0], stacked[1] - stacked[0]) > 10


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
    result = CliRunner().invoke(benchmark.main, ["--linear", "--dtype", "bfloat16"])
    assert result.exit_code == 2
    assert "--dtype goes with --layers and --kernels" in result.output


@pytest.mark.parametrize(
    ("setting", "architecture", "cuda", "expected"),
    [
        (None, "applegpu_g17p", False, True),
        (None, "applegpu_g16s", False, False),
        (None, "sm_90", True, True),
        ("0", "sm_90", True, False),
        ("1", "applegpu_g17p", False, True),
    ],
)
def test_tf32(monkeypatch, setting, architecture, cuda, expected):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": architecture})
    monkeypatch.setattr(mx.cuda, "is_available", lambda: cuda)
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

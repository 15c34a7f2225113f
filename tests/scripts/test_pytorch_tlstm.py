"""The benchmark's PyTorch baseline against the float64 reference, and the benchmark itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
from comparison import assert_close
from layer_helpers import BATCH, HIDDEN, INPUT, STEPS, single
from metal_on_cpu.planting import planted
from processes import ROOT, environment
from reference import Specification

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: bench)")

from benchmarking.pytorch_tlstm import TorchTLSTM, copy_parameters, tlstm_pass  # noqa: E402

# Shapes with a different size on each axis; K as the module takes it, one for all axes.
SPECIFICATIONS = [
    Specification(tensor_size, (kernel_size,) * len(tensor_size), memory_convolution, norm)
    for tensor_size, kernel_size, memory_convolution, norm in [
        ((1,), 2, True, None),
        ((1,), 3, True, "channel"),
        ((3,), 2, True, None),
        ((3,), 3, False, None),
        ((5,), 4, True, "channel"),
        ((4,), 5, True, "layer"),
        ((2, 4), 3, True, "channel"),
        ((3, 2), 2, False, "layer"),
        ((3, 2), 4, True, None),
        ((2, 3, 1), 3, True, "channel"),
    ]
]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only wait for one another at these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings_of(spec: Specification) -> dict:
    return {
        "input_size": INPUT,
        "hidden_size": HIDDEN,
        "tensor_size": spec.tensor_size,
        "kernel_size": spec.kernel_size[0],
        "memory_convolution": spec.memory_convolution,
        "norm": spec.norm,
    }


@pytest.mark.parametrize("spec", SPECIFICATIONS, ids=str)
def test_outputs_and_gradients_are_the_references(spec):
    rng = np.random.default_rng(1)
    parameters = reference.random_parameters(spec, INPUT, HIDDEN, rng)
    parameters = {name: single(array) for name, array in parameters.items()}
    x = single(rng.normal(size=(BATCH, STEPS, INPUT)))
    cotangent = single(rng.normal(size=(BATCH, STEPS, HIDDEN)))
    zeros = np.zeros((BATCH, *spec.tensor_size, HIDDEN))
    trace = reference.tlstm_forward(spec, parameters, x, zeros, zeros, flush=True)
    expected = reference.tlstm_backward(spec, parameters, trace, cotangent, zeros, zeros)

    arrays = {f"cell.{name}": array.astype(np.float32) for name, array in parameters.items()}
    x32, cotangent32 = x.astype(np.float32), cotangent.astype(np.float32)
    outputs, gradients = tlstm_pass(settings_of(spec), arrays, x32, cotangent32, "cpu")()
    assert_close(outputs.detach().numpy(), trace.outputs, 1e-5)
    found = {name.removeprefix("cell."): array.numpy() for name, array in gradients.items()}
    assert gradients.keys() == arrays.keys() | {"x"}
    assert_close(found, {name: expected[name] for name in found}, 4e-5)


def test_copying_refuses_other_parameters():
    spec = SPECIFICATIONS[1]
    module = TorchTLSTM(**settings_of(spec))
    arrays = {name: p.detach().numpy() for name, p in module.named_parameters()}
    copy_parameters(module, {f"cell.{name}": array for name, array in arrays.items()})
    with pytest.raises(RuntimeError, match="Missing key"):
        copy_parameters(module, {"cell.weight": arrays["weight"]})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        copy_parameters(module, arrays | {"cell.other": arrays["bias"]})
    with pytest.raises(RuntimeError, match="size mismatch"):
        copy_parameters(module, arrays | {"cell.bias": arrays["bias"][1:]})


def run_benchmark(
    *arguments: str, root: Path = ROOT, compiler: bool = False
) -> subprocess.CompletedProcess:
    """The script; without the compiler torch.compile leaves its functions as they are."""
    settings = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "0" if compiler else "1"}
    command = [sys.executable, str(root / "scripts" / "benchmark.py"), *arguments]
    return subprocess.run(command, env=environment(**settings), capture_output=True, text=True)


@pytest.mark.parametrize("compiler", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_benchmark_prints_a_table_and_writes_json(tmp_path, compiler):
    path = tmp_path / "figures.json"
    arguments = ["--size", "2x3,M=8,B=2,T=4", "--rounds", "2", "--warmup", "0", "--markdown"]
    done = run_benchmark(*arguments, "--device", "cpu", "--json", str(path), compiler=compiler)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    header, _, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    cells = dict(zip(header, row, strict=True))
    size = "2x3, M=8, B=2, T=4"
    assert cells["size"] == size
    for other in ("products", "PyTorch", "compiled"):
        assert float(cells[other]) > 0
        assert float(cells[f"to {other}"]) > 0
    recorded = json.loads(path.read_text())
    (timings,) = recorded["timings"].values()
    assert timings.keys() == {size, *(f"{size} {o}" for o in ("products", "eager", "compiled"))}
    assert all(len(timing["milliseconds"]) == 2 for timing in timings.values())
    assert recorded["facts"]["pytorch"].startswith(torch.__version__)


def test_benchmark_reports_no_speed_on_wrong_numbers(tmp_path):
    scripts = shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    worker = scripts / "benchmarking" / "pytorch_tlstm.py"
    worker.write_text(planted(worker.read_text(), "A_g.tanh()", "A_g.sigmoid()"))
    arguments = ["--size", "2,M=8,B=2,T=4", "--rounds", "1", "--device", "cpu"]
    done = run_benchmark(*arguments, root=tmp_path)
    assert done.returncode == 1
    assert "no speed on wrong numbers" in done.stderr
    assert "products" not in done.stdout

"""``mlx-tlstm check``: what it finds right and wrong, and what it writes."""

import json
import subprocess
import sys

import mlx.core as mx
import pytest
from click.testing import CliRunner
from kernel_devices import computes_wrong, needs_compiler
from mlx.utils import tree_map

from mlx_tlstm.checking import chains, settings, survey
from mlx_tlstm.commands.checking import JSON_NAME
from mlx_tlstm.commands.checking import check as command
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import trial, tuning
from mlx_tlstm.kernels.library import Kernel
from mlx_tlstm.kernels.tiles import CANDIDATES
from mlx_tlstm.ops import PlainBackend
from mlx_tlstm.tasks import TASKS


def check(tmp_path, *options):
    """Exit code, lines and record of the command."""
    path = tmp_path / "check.json"
    result = CliRunner().invoke(command, ["--json", str(path), *map(str, options)])
    record = json.loads(path.read_text()) if path.is_file() else None
    return result.exit_code, result.output.splitlines(), record


class TestOnACPU:
    def test_plain_operations_are_checked_and_the_rest_is_named(self, tmp_path):
        code, lines, record = check(tmp_path, "--seconds", 0)
        assert code == 0
        assert lines[-1].startswith("plain operations right; kernels not checked (the default dev")
        assert record["verdict"] == lines[-1]
        assert record["right"] is True
        assert len(record["plain"]) == len(survey.VARIANTS_WITH_KERNELS)
        assert all(entry["error"] < entry["tolerance"] for entry in record["plain"])
        # One line for the kernels, and one for each setting that there was no time for.
        left_out = [line for line in lines if line.startswith("not checked: ")]
        assert len(left_out) == 1 + len(survey.settings()) == len(record["not checked"])
        assert record["machine"]["mlx"] == mx.__version__

    def test_wrong_plain_operations(self, tmp_path, monkeypatch):
        monkeypatch.setattr("mlx_tlstm.ops.memory_update.EPSILON", 0.1)
        code, lines, record = check(tmp_path, "--seconds", 0)
        assert code == 1
        assert lines[-1].startswith(
            "wrong on this device: plain operations on the CPU, 3d-tlstm+ln"
        )
        assert record["right"] is False
        assert sum("WRONG" in line for line in lines) == 4  # the four with a norm

    def test_settings_are_timed(self, tmp_path, monkeypatch):
        first = survey.settings()[:1]
        monkeypatch.setattr(survey, "settings", lambda: first)
        monkeypatch.setattr(survey, "VARIANTS_WITH_KERNELS", ["2d-trnn"])
        monkeypatch.setattr(settings, "_STEPS", 2)
        code, lines, record = check(tmp_path)
        assert code == 0
        [entry] = record["settings"]
        assert entry["quickest"] == "cpu ops"
        assert entry["step ms"]["cpu ops"] > 0
        assert any(line.startswith("memorization quick (3d-tlstm+cn, L=4") for line in lines)

    def test_what_takes_too_long_or_too_much_is_left_out(self, tmp_path, monkeypatch):
        first = survey.settings()[:1]
        monkeypatch.setattr(survey, "settings", lambda: first)
        monkeypatch.setattr(survey, "VARIANTS_WITH_KERNELS", [])
        monkeypatch.setattr(settings, "_SECONDS_OF_A_PASS", 0.0)
        _, lines, _ = check(tmp_path)
        assert any("on cpu ops: would take some" in line for line in lines)
        monkeypatch.setattr(settings, "_SECONDS_OF_A_PASS", 9.0)
        monkeypatch.setattr("mlx_tlstm.training.memory_prediction.limit", lambda: 1000)
        _, lines, record = check(tmp_path)
        assert any("on cpu ops: needs 1" in line or "MiB" in line for line in lines)
        assert record["settings"][0]["quickest"] is None

    def test_a_file_that_cannot_be_written_is_said_first(self, tmp_path):
        code, lines, record = check(tmp_path / "missing")
        assert (code, record) == (2, None)
        assert "No such file or directory" in lines[-1]

    def test_as_a_module(self, tmp_path):
        command = [sys.executable, "-m", "mlx_tlstm.check", "--seconds", "0"]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (process.returncode, process.stderr) == (0, "")
        assert json.loads((tmp_path / JSON_NAME).read_text())["right"] is True


def test_every_tasks_settings_are_there():
    names = [name for setting in settings.settings() for name in setting.names]
    expected = [f"{task} {scale}" for scale in ("quick", "paper") for task in TASKS]
    assert sorted(names) == sorted(expected)


@pytest.mark.parametrize(
    ("method", "variants"),
    [
        ("convolution", "tlstm trnn"),
        ("convolution_gradient", "tlstm trnn"),
        ("weight_gradient", "tlstm trnn"),
        ("memory_update", "tlstm"),
        ("memory_gradient", "tlstm"),
        ("first_gradients", "tlstm"),
        ("tanh_gradient", "trnn"),
    ],
)
def test_a_fault_in_any_plain_operation_is_found(tmp_path, monkeypatch, method, variants):
    """Results of one method that are off by one in two thousand, values and gradients."""
    right = getattr(PlainBackend, method)

    def off(array):
        return array * 1.0005 if isinstance(array, mx.array) else array

    monkeypatch.setattr(
        PlainBackend, method, lambda *arguments, **named: tree_map(off, right(*arguments, **named))
    )
    code, _, record = check(tmp_path, "--seconds", 0)
    assert code == 1
    wrong = [entry["name"] for entry in record["plain"] if not entry["right"]]
    assert len(wrong) == sum(
        any(kind in name for kind in variants.split()) for name in survey.VARIANTS_WITH_KERNELS
    )


@pytest.mark.standin(mode="fast", check=False)
@pytest.mark.parametrize("norm", [None, "channel", "layer"])
def test_single_kernels_compute_what_plain_operations_do(kernel_calls, norm):
    problem = chains.Problem(Geometry((3, 2), (3, 3)), 8, 3, norm=norm)
    for name in chains.CHAINS | chains.RARER_CHAINS:
        for choice in (CANDIDATES[-1], None):
            with tuning.forced(choice):
                found = chains.make_chain(problem, name).once()
            expected = chains.make_chain(problem, name, plain=True).once()
            for got, wanted in zip(found, expected, strict=True):
                error = trial.relative_error(trial.to_numpy(got), trial.to_numpy(wanted))
                assert error < 1e-5, name


@pytest.fixture
def small(kernel_calls, monkeypatch):
    """The check at sizes for which the stand-in is quick; it cannot run what is compiled."""
    prove = trial.prove
    monkeypatch.setattr(trial, "prove", lambda configuration, compiled: prove(configuration))
    monkeypatch.setattr(survey, "PROBLEM", chains.Problem(Geometry((3,), (3,)), 8, 2))
    monkeypatch.setattr(survey, "_LAUNCHES", 1)
    monkeypatch.setattr(survey, "DTYPES", ("float32", "bfloat16"))
    monkeypatch.setattr(survey, "VARIANTS_WITH_KERNELS", ["2d-trnn", "2d-tlstm+ln"])
    monkeypatch.setattr(survey, "settings", list)
    monkeypatch.setattr(survey, "operations_per_step", lambda layer: 4.25)


@needs_compiler
@pytest.mark.standin(mode="fast", check=False)
class TestWithKernels:
    def test_each_kernel_type_and_layer(self, small, tmp_path):
        code, lines, record = check(tmp_path)
        assert (code, lines[-1]) == (0, "kernels right on this device, their speed not measured")
        assert len(record["kernels"]) == (8 + 3) * 2  # three in two ways
        assert len(record["proofs"]) == 2 * 2 * 2
        assert all(entry["right"] for entry in record["kernels"] + record["proofs"])
        forward = record["kernels"][0]
        assert {"kernel ms", "plain ms", "bare product ms"} < forward.keys()

    def test_a_wrong_kernel_is_named(self, small, tmp_path, monkeypatch):
        computes_wrong(monkeypatch, "memory_gather", 0, 2.0)
        code, lines, record = check(tmp_path)
        assert code == 1
        named = [entry["name"] for entry in record["kernels"] if not entry["right"]]
        assert named == [
            "memory_backward, float32",
            "memory_gather, float32",
            "memory_backward, bfloat16",
            "memory_gather, bfloat16",
        ]
        assert lines[-1].startswith("wrong on this device: memory_backward, float32")

    def test_a_kernel_that_fails_is_named_and_the_check_goes_on(self, small, tmp_path, monkeypatch):
        launch = Kernel.__call__

        def fails(self, inputs, **rest):
            if self.name == "stack":
                raise RuntimeError("[metal::Device] Unable to build metal library")
            return launch(self, inputs, **rest)

        monkeypatch.setattr(Kernel, "__call__", fails)
        code, _, record = check(tmp_path)
        assert code == 1
        failed = [entry for entry in record["kernels"] if not entry["right"]]
        names = ("stack", "convolution_weight_gradient as a product")
        expected = {f"{name}, {dtype}" for name in names for dtype in ("float32", "bfloat16")}
        assert {entry["name"] for entry in failed} == expected
        assert "Unable to build" in failed[0]["reason"]
        assert len(record["kernels"]) == (8 + 3) * 2  # three in two ways

    @pytest.mark.parametrize(
        ("quickest", "verdict"),
        [
            ("gpu metal", "kernels right and faster on this device"),
            ("gpu ops", "kernels right, but not the quickest for mnist paper (gpu ops)"),
        ],
    )
    def test_verdict_on_speed(self, kernel_calls, quickest, verdict):
        one = survey.Survey(print)
        assert one._verdict() == (
            True,
            "plain operations right; kernels not checked (the time was up)",
        )
        one.record["proofs"] = [{"name": "layer", "right": True}]
        times = {"gpu metal": 2.0, "gpu ops": 2.0}
        one.record["settings"] = [{"name": "mnist paper", "step ms": times, "quickest": quickest}]
        assert one._verdict() == (True, verdict)
        one._all_kernels = False
        assert one._verdict() == (True, f"{verdict}, as far as there was time")

"""``mlx-tlstm check``: what it finds right and wrong, and what it writes."""

import json
import re
import subprocess
import sys
from typing import NamedTuple

import mlx.core as mx
import pytest
from click.testing import CliRunner
from kernel_devices import claims_gpu, computes_wrong, fails, fails_later, needs_compiler
from mlx.utils import tree_map

from mlx_tlstm.checking import chains, comparisons, settings, survey
from mlx_tlstm.commands.checking import JSON_NAME
from mlx_tlstm.commands.checking import check as command
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import dispatch, proof, trial, tuning
from mlx_tlstm.kernels.library import KERNELS, Kernel
from mlx_tlstm.kernels.tiles import CANDIDATES
from mlx_tlstm.layers.variants import make_layer
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
            "not right on this device: plain operations on the CPU, 3d-tlstm+ln"
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
        assert any(re.search(r"on cpu ops: needs \d+ MiB", line) for line in lines)
        assert record["settings"] == []

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
def small(kernel_calls, monkeypatch, tmp_path):
    """The check at sizes for which the stand-in is quick; it cannot run what is compiled."""
    monkeypatch.setattr(proof, "prove", lambda one, compiled: trial.prove(one))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(survey, "PROBLEM", chains.Problem(Geometry((3,), (3,)), 8, 2))
    monkeypatch.setattr(comparisons, "_LAUNCHES", 1)
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
        assert lines[-1].startswith("not right on this device: memory_backward, float32")

    def test_a_kernel_that_fails_is_named_and_the_check_goes_on(self, small, tmp_path, monkeypatch):
        fails(monkeypatch, "stack", RuntimeError("[metal::Device] Unable to build metal library"))
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
        one._late.add("proofs")
        assert one._verdict() == (True, f"{verdict}, as far as there was time")


TIMEOUT = (
    "[METAL] Command buffer execution failed: Caused GPU Timeout Error "
    "(00000002:kIOGPUCommandBufferCallbackErrorTimeout)."
)
THREADS = (
    "Thread group size (128) is greater than  the maximum allowed threads per threadgroup (64)."
)


def raises(error):
    def raising(*_, **__):
        raise error

    return raising


class OnePass(NamedTuple):
    """In place of a layer's, which fails with kernels."""

    backend: str

    def run(self):
        if self.backend == "metal":
            raise RuntimeError(TIMEOUT)


@pytest.fixture
def zeros(monkeypatch, tmp_path):
    """A device whose kernels write zeros, and a check without layers and tasks."""

    def launched(self, inputs, *, shapes, dtypes, **_):
        return [mx.zeros(*kind) for kind in zip(shapes, dtypes, strict=True)]

    monkeypatch.setattr(Kernel, "__call__", launched)
    monkeypatch.setattr(dispatch, "kernel_backend", lambda: ("metal", ""))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(survey, "PROBLEM", chains.Problem(Geometry((3,), (3,)), 8, 2))
    monkeypatch.setattr(comparisons, "_LAUNCHES", 1)
    monkeypatch.setattr(survey, "DTYPES", ("float32",))
    monkeypatch.setattr(survey, "VARIANTS_WITH_KERNELS", [])
    monkeypatch.setattr(survey, "settings", list)
    monkeypatch.setattr(survey, "product_rate", lambda device: 1e12)
    monkeypatch.setattr(survey, "operations_per_step", lambda layer: 4.25)
    proof.forget()
    yield
    proof.forget()


def failures(record):
    """What failed, by its name why."""
    parts = (part for part in record.values() if isinstance(part, list))
    entries = (entry for part in parts for entry in part if isinstance(entry, dict))
    return {entry["name"]: entry["reason"] for entry in entries if "reason" in entry}


class TestWhatFails:
    """Whatever fails on a device, wherever, is in the record, and the check goes on."""

    @pytest.mark.parametrize(
        "error", [RuntimeError("program_source:1: error: x"), ValueError(THREADS)]
    )
    @pytest.mark.parametrize("kernel", sorted(KERNELS))
    def test_any_kernel(self, zeros, tmp_path, monkeypatch, kernel, error):
        fails(monkeypatch, kernel, error)
        code, lines, record = check(tmp_path)
        assert code == 1
        assert len(record["kernels"]) == 8 + 3  # three in two ways
        failed = failures(record)
        assert set(failed.values()) == {str(error)}
        around = {"convolution_unfold": "convolution_forward as a product, float32"}
        around["convolution_fold"] = "convolution_input_gradient as a product, float32"
        assert around.get(kernel, f"{kernel}, float32") in failed
        for name in failed:
            assert any(line.startswith(f"{name}: FAILED: ") for line in lines)
            assert name in lines[-1].removeprefix("not right on this device: ").split("; ")
        assert lines[-1] == record["verdict"]
        assert [entry["name"] for entry in record["launches a step"]] == ["metal", "ops"]

    @pytest.mark.parametrize(
        ("module", "name", "failed"),
        [
            (
                comparisons,
                "make_layer",
                "plain operations on the CPU, 2d-trnn, beside the equations",
            ),
            (survey, "make_layer", "layers"),
            (survey, "operations_per_step", "launches of a time step, forward and backward, metal"),
            (survey, "product_rate", "matrix products, cpu"),
            (settings, "Pass", "time of memorization quick"),
            (settings, "measure", "times of memorization quick"),
            (settings.Pass, "run", "time of memorization quick"),
            (tuning, "select", "layers"),
        ],
    )
    def test_anything_else(self, zeros, tmp_path, monkeypatch, module, name, failed):
        first = settings.settings()[:1]
        monkeypatch.setattr(settings, "_STEPS", 2)
        monkeypatch.setattr(survey, "settings", lambda: first)
        monkeypatch.setattr(survey, "VARIANTS_WITH_KERNELS", ["2d-trnn"])
        monkeypatch.setattr(proof, "prove", raises(trial.KernelError("wrong numbers")))
        monkeypatch.setattr(module, name, raises(RuntimeError(TIMEOUT)))
        code, lines, record = check(tmp_path)
        assert code == 1
        [found] = {one for one, reason in failures(record).items() if one.startswith(failed)}
        assert failures(record)[found] == TIMEOUT
        assert f"{found}: FAILED: {TIMEOUT}" in lines
        assert record["verdict"] == lines[-1]
        assert "running" not in record

    def test_one_candidate_leaves_the_others_their_times(self, zeros, monkeypatch):
        first = settings.settings()[:1]
        monkeypatch.setattr(survey, "settings", lambda: first)
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
        monkeypatch.setattr(mx, "set_default_device", lambda device: None)
        monkeypatch.setattr(survey, "device_facts", lambda device: {"architecture": "any"})
        monkeypatch.setattr(settings.memory_prediction, "limit", lambda: 1 << 40)
        monkeypatch.setattr(settings, "Pass", lambda layer, *_: OnePass(layer.cell.backend))
        one = survey.Survey(print)
        one._settings()
        assert list(one.record["settings"][-1]["step ms"]) == ["cpu ops", "gpu ops"]
        [(name, reason)] = failures(one.record).items()
        assert name.startswith("time of memorization quick")
        assert name.endswith(" on gpu metal")
        assert reason == TIMEOUT

    def test_a_mac_without_a_metal_device(self, tmp_path, monkeypatch):
        """Where MLX has nothing to compute with, the file says so of each thing."""
        none = raises(RuntimeError("[metal::load_device] No Metal device available."))
        claims_gpu(monkeypatch, "")
        monkeypatch.setattr(mx, "set_default_device", lambda device: None)
        monkeypatch.setattr(mx, "device_info", none)
        monkeypatch.setattr(comparisons, "make_layer", none)
        monkeypatch.setattr(survey, "product_rate", none)
        code, lines, record = check(tmp_path)
        assert code == 1
        assert lines[-1].startswith(
            "not right on this device: plain operations on the CPU, 2d-tlstm"
        )
        assert set(failures(record).values()) == {"[metal::load_device] No Metal device available."}
        [left_out] = record["not checked"]
        assert left_out.startswith("kernels: no Metal device: [metal::load_device] No Metal device")
        assert record["machine"]["mlx"] == mx.__version__

    def test_a_late_error_hits_nobody_else(self, zeros, tmp_path, monkeypatch):
        fails(monkeypatch, "memory_forward", RuntimeError("at once"), before=fails_later)
        _, _, record = check(tmp_path)
        assert set(failures(record)) == {"memory_forward, float32", "memory_backward, float32"}
        assert set(failures(record).values()) == {"at once"}

    def test_the_whole_text_is_kept_and_a_line_is_said(self, zeros, tmp_path, monkeypatch):
        first = settings.settings()[:1]
        monkeypatch.setattr(survey, "settings", lambda: first)
        monkeypatch.setattr(survey, "step_times", lambda passes: {})
        monkeypatch.setattr(settings.Setting, "pass_on", lambda *_: print)
        text = "Unable to build\n" + 30 * "utils.h:73:3: warning: inline variables\n"
        text += (
            "mlx_tlstm/tiles.h:60:10: error: no function\n" + 30 * "note: not viable\n" + "the end"
        )
        fails(monkeypatch, "memory_backward", RuntimeError(text))
        _, lines, record = check(tmp_path)
        failed = failures(record)
        assert len(failed) == 3  # the kernel, and the layer in two ways
        assert all(text in reason for reason in failed.values())
        said = [line for line in lines if "FAILED" in line]
        assert len(said) == 3
        assert all("Unable to build mlx_tlstm/tiles.h:60:10: error: no function" in x for x in said)
        assert all("the end" not in line for line in said)

    def test_no_home_folder_is_named(self, zeros, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", "/Users/ann")
        text = "Failed to load the metallib /Users/ann/site-packages/mlx.metallib"
        first = settings.settings()[:1]
        monkeypatch.setattr(survey, "settings", lambda: first)
        monkeypatch.setattr(survey, "step_times", lambda passes: {})
        monkeypatch.setattr(settings.Setting, "pass_on", lambda *_: print)
        fails(monkeypatch, "memory_forward", RuntimeError(text))
        _, lines, record = check(tmp_path)
        assert all("~/site-packages" in reason for reason in failures(record).values())
        assert "/Users/ann" not in json.dumps(record)
        assert not any("/Users/ann" in line for line in lines)


class TestTheFileMeanwhile:
    """What is on the disk when a GPU hangs, or a driver ends the process."""

    def test_it_names_what_is_running(self, zeros, tmp_path, monkeypatch):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(survey, "operations_per_step", interrupted)
        code, _, record = check(tmp_path)
        assert code == 130
        assert record["running"] == "launches of a time step, forward and backward, metal"
        assert len(record["kernels"]) == 8 + 3
        assert "verdict" not in record

    def test_what_hung_before_is_tried_again(self, zeros, tmp_path, monkeypatch):
        """Layers do not; the check is there to find out."""

        def first_use(layer, batch_size=1, length=1):
            layer.cell.active_transition(batch_size)
            return OnePass("ops")

        setting = settings.settings()[0]
        configurations = [
            trial.Configuration.of(make_layer("3d-tlstm+cn", survey.INPUT_SIZE, 20, 3).cell, 1),
            trial.Configuration.of(setting.layer().cell, setting.rows),
        ]
        with monkeypatch.context() as patch:  # a process with our number begins and ends
            patch.setattr(proof, "prove", raises(KeyboardInterrupt))
            patch.setattr(proof, "_remove", lambda path: None)
            for one in configurations:
                with pytest.raises(KeyboardInterrupt):
                    proof.prove_anew(one)
        for one in configurations:
            with pytest.raises(trial.KernelError, match="hung or was ended"):
                proof.proven(one)
        proof.forget()
        right = {"outputs": (0.0, 1.0)}
        monkeypatch.setattr(proof, "prove", lambda one, _: trial.Proof(one.kernels, right))
        monkeypatch.setattr(settings, "Pass", first_use)
        monkeypatch.setattr(survey, "operations_per_step", lambda layer: first_use(layer) and 4.25)
        one = survey.Survey(print)
        one._launches()
        setting.pass_on("cpu", "metal", 1e12)
        assert failures(one.record) == {}
        for one in configurations:
            assert proof.proven(one) == one.kernels

    def test_it_has_the_machine_from_the_start(self, tmp_path, monkeypatch):
        monkeypatch.setattr(survey.Survey, "_plain", raises(KeyboardInterrupt))
        _, _, record = check(tmp_path)
        assert record["machine"]["mlx"] == mx.__version__

    def test_a_closed_pipe_is_no_fault_of_the_device(self, tmp_path):
        record = {}
        one = survey.Survey(raises(BrokenPipeError()), record.update, seconds=0)
        with pytest.raises(BrokenPipeError):
            one.run()
        assert record["plain"] == []

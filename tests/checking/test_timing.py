"""Statistics and order of measurements, on a clock that the test moves itself."""

from __future__ import annotations

import json
import os
import subprocess

import mlx.core as mx
import pytest
from layer_helpers import build

from mlx_tlstm import TLSTM, blas
from mlx_tlstm.checking import passes, timing
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


def test_commit_of_a_worktree(tmp_path):
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    for arguments in (["init"], ["commit", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *identity, *arguments, "--quiet"], cwd=tmp_path, check=True)
    tree = tmp_path / "tree"
    subprocess.run(["git", "worktree", "add", "--quiet", str(tree)], cwd=tmp_path, check=True)
    assert (tree / ".git").is_file()
    assert len(timing._commit(tree)) == 12


def test_git_is_not_run_where_there_is_no_checkout(tmp_path, monkeypatch):
    """On a Mac without developer tools that opens a window."""
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    git.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(git.parent), prepend=os.pathsep)
    assert timing._commit(tmp_path) is None
    assert not (tmp_path / "ran").exists()


def test_machine_whose_device_is_missing(monkeypatch):
    def none(*_):
        raise RuntimeError("[metal::load_device] No Metal device available.")

    monkeypatch.setattr(mx, "device_info", none)
    assert machine().device.endswith("(unknown)")
    assert timing.device_facts(mx.gpu) == {}


def test_operations_of_a_step_grow_with_a_stacked_lstm_only():
    tensor = [passes.operations_per_step(TLSTM(4, 7, (P,), norm="channel")) for P in (2, 3)]
    # Additions over steps that mx.compile joins, so many at a time.
    assert tensor[0] == pytest.approx(tensor[1], abs=0.5)
    stacked = [passes.operations_per_step(build("stacked", L)[0]) for L in (2, 3, 4)]
    assert stacked[2] - stacked[1] == pytest.approx(stacked[1] - stacked[0], abs=0.5)
    assert min(tensor[0], stacked[1] - stacked[0]) > 5

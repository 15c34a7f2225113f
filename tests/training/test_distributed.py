"""Training in several processes, over loopback with MLX's ring."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner
from processes import ROOT, environment, wait_for_records

from mlx_tlstm import launch, training
from mlx_tlstm.commands.training import train as train_command
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.training.disk import ROLLBACK_FACTOR
from mlx_tlstm.training.workers import WorkerLostError, Workers

SETTINGS = "--depth 2 --hidden-size 8 --batch-size 4 --eval-every 16 --samples 64 --length 2"
TASKS = {
    "addition": f"addition --variant 2d-tlstm+cn {SETTINGS}",
    # Carries its state from step to step.
    "wikipedia": f"wikipedia --data {{text}} {SETTINGS}".replace("64", "80"),
}


def much_longer(arguments: str) -> str:
    """The same training, of many minutes, so that it goes on whenever a signal comes."""
    return arguments.replace("--samples 64", "--samples 100000")


def port() -> str:
    """The first of two ports that are free, below those that systems give to whoever asks.

    Processes that come at once look from different ones on.
    """
    for first in range(20_000 + os.getpid() % 5_000 * 2, 32_000, 2):
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", first))
            other.bind(("127.0.0.1", first + 1))
            return str(first)
    raise OSError("all ports are in use")


def start(arguments: str, workers: int, folder: Path, **popen) -> subprocess.Popen:
    if workers == 1:
        command = [sys.executable, "-m", "mlx_tlstm.train"]
    else:
        command = [sys.executable, "-m", "mlx_tlstm.launch", "-n", str(workers), "-p", port(), "--"]
    return subprocess.Popen(
        [*command, *arguments.split()],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )


def train(arguments: str, workers: int, folder: Path) -> str:
    """What a training wrote to stdout; it has to succeed."""
    process = start(arguments, workers, folder)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_alike(one: Path, other: Path) -> None:
    """The same records, up to the rounding of sums; Adam spreads it from step to step."""
    expected, got = records(one), records(other)
    assert [record["samples"] for record in got] == [record["samples"] for record in expected]
    for mine, theirs in zip(got, expected, strict=True):
        for name in ("loss", "gradient_norm", "evaluation_loss"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(b"the cell of a tensor keeps what the input brings. " * 40)
    return path


@pytest.mark.parametrize("task", TASKS)
def test_two_workers_have_the_losses_of_one(task, text, tmp_path):
    arguments = TASKS[task].format(text=text)
    train(f"{arguments} --out one", 1, tmp_path)
    output = train(f"{arguments} --out two", 2, tmp_path)
    assert output.count("run: two") == 1  # only the first process speaks
    assert_alike(tmp_path / "one", tmp_path / "two")


def test_parts_of_shares(tmp_path):
    train(f"addition {SETTINGS} --out one", 1, tmp_path)
    train(f"addition {SETTINGS} --accumulate 2 --device cpu --backend ops --out two", 2, tmp_path)
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stopped_and_resumed_with_another_number_of_workers(number, text, tmp_path):
    settings = f"{SETTINGS.replace('every 16', 'every 100')} --epochs 100000"
    arguments, run = f"wikipedia --data {text} {settings}", tmp_path / "run"
    process = start(f"{much_longer(arguments)} --checkpoint-every 1 --out run", 2, tmp_path)
    wait_for_records(process, run, 1)
    for _ in range(2 if number == signal.SIGHUP else 1):  # a shell and the system may both send it
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "to go on: python -m mlx_tlstm.train --resume run" in errors
    assert "Traceback" not in errors
    last = json.loads(max(run.glob("checkpoints/*/state.json")).read_text())
    samples = 4 * last["step"] + 100
    config = TrainingConfig.load(run / "config.json")
    config.replace(samples=samples).save(run / "config.json")
    train("--resume run", 1, tmp_path)
    train(f"{arguments.replace('samples 64', f'samples {samples}')} --out whole", 1, tmp_path)
    assert_alike(tmp_path / "whole", run)


def test_resumed_in_two_processes_with_data_that_has_moved(text, tmp_path):
    """What a checkpoint's files hold has another order than what a process holds."""
    arguments = TASKS["wikipedia"].format(text=text)
    train(f"{arguments} --checkpoint-every 8 --out run", 1, tmp_path)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    (tmp_path / "other" / "test.json").unlink()
    *_, last = sorted((tmp_path / "other" / "checkpoints").iterdir())
    shutil.rmtree(last)
    moved = text.rename(tmp_path / "moved")
    train("--resume other --data moved", 2, tmp_path)
    assert_alike(tmp_path / "run", tmp_path / "other")
    assert json.loads((tmp_path / "other" / "config.json").read_text())["data"] == str(moved)


def test_nohup(tmp_path):
    """A launcher that was told to ignore SIGHUP goes on, and so do its workers."""
    run, settings = tmp_path / "run", much_longer(SETTINGS)
    command = [sys.executable, "-m", "mlx_tlstm.launch", "-n", "2", "-p", port(), "--", "addition"]
    process = subprocess.Popen(
        ["nohup", *command, *settings.split(), "--out", "run"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_records(process, run, 1)
    process.send_signal(signal.SIGHUP)
    wait_for_records(process, run, len(records(run)) + 3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors


def test_a_failing_worker_ends_all(tmp_path):
    process = start("addition --batch-size 3 --out run", 2, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "'batch_size' must be a multiple of the 2 workers but got 3" in errors
    assert "Traceback" not in errors


def test_an_error_of_a_worker_s_step_is_no_mistake_of_the_user(monkeypatch):
    def fail(_):
        raise ValueError("from the middle of training")

    monkeypatch.setattr(Workers, "launched", lambda: Workers(1, 2))
    monkeypatch.setattr(training, "join", lambda *_: None)
    monkeypatch.setattr(training, "follow", fail)
    result = CliRunner().invoke(train_command, ["addition"])
    assert isinstance(result.exception, ValueError), result.output


class TestLauncher:
    @pytest.mark.parametrize(
        ("said", "own", "code"),
        [
            ("[WARN] Node with rank 1 exited with code 3", 0, 3),
            ("[WARN] Node with rank 0 exited with code -9", 0, 137),
            ("[WARN] Node with rank 0 exited with code 3", 4, 3),
            ("anything else", 0, 0),
            ("anything else", 4, 4),
        ],
    )
    def test_exit_code(self, tmp_path, monkeypatch, said, own, code):
        fake = tmp_path / "mlx.launch"
        lines = "import sys", f"sys.stderr.write({said!r})", f"sys.exit({own})"
        fake.write_text("\n".join([f"#!{sys.executable}", *lines]))
        fake.chmod(0o755)
        monkeypatch.setattr(launch, "launcher", lambda: str(fake))
        assert launch.run(["-n", "2"], ["addition"]) == code

    def test_a_group_that_is_ending(self, monkeypatch):
        """Linux says that it is gone, macOS that it may not be signalled."""

        def refuse(*_):
            raise errors.pop()

        errors = [ProcessLookupError(), PermissionError()]
        monkeypatch.setattr(launch.os, "killpg", refuse)
        with launch._signals() as (passed, follow):
            follow(1)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        assert (passed, errors) == ([signal.SIGTERM] * 2, [])

    def test_usage(self):
        command = [sys.executable, "-m", "mlx_tlstm.launch", "-n", "2"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert "python -m mlx_tlstm.launch [mlx.launch's options] -- [TASK]" in done.stdout

    def test_one_process(self, tmp_path):
        """MLX cannot join a ring of one."""
        command = [sys.executable, "-m", "mlx_tlstm.launch", "-n", "1", "-p", port(), "--"]
        done = subprocess.run(
            [*command, "addition", "--out", "run"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "it takes two or more (-n 2), and one trains without it" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "run").exists()

    def test_without_docstrings(self):
        command = [sys.executable, "-OO", "-m", "mlx_tlstm.launch", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "usage: python -m mlx_tlstm.launch" in done.stdout


class TestAlone:
    def test_nothing_changes(self):
        workers, tree = Workers(), {"a": mx.array([1.0, 2.0])}
        assert workers.first
        assert workers.mean(tree) is workers.joined(tree) is workers.from_first(tree) is tree
        assert workers.text_from_first("ä") == "ä"
        assert workers.share(5) == slice(0, 5)
        workers.announce("step")
        assert not workers.stop_asked

    @pytest.mark.parametrize("method", ["mean", "joined", "from_first"])
    def test_no_device_waits_for_other_machines(self, method, monkeypatch):
        """What is sent is evaluated before, and what comes back before it is used."""
        order = []
        for name in ("all_sum", "all_gather"):
            monkeypatch.setattr(mx.distributed, name, lambda a: order.append("exchange") or a)
        monkeypatch.setattr(mx, "eval", lambda tree: order.append("evaluation"))
        getattr(Workers(0, 2), method)({"a": mx.ones(2), "b": [mx.ones((2, 3))]})
        assert order == ["evaluation", "exchange", "exchange", "evaluation"]

    def test_a_worker_that_asks_to_stop_asks_once(self, monkeypatch):
        asked = iter([1, 0])
        monkeypatch.setattr(
            mx.distributed, "all_sum", lambda a, stream: a + mx.array([0, next(asked)])
        )
        workers = Workers(0, 2)
        for _ in range(2):
            workers.announce("step")
            assert workers.stop_asked

    def test_a_text_of_any_letters_reaches_the_others(self, monkeypatch):
        said = []
        monkeypatch.setattr(mx.distributed, "all_sum", lambda a: said.append(a) or a)
        assert Workers(0, 2).text_from_first("/läufe/文") == "/läufe/文"
        monkeypatch.setattr(mx.distributed, "all_sum", lambda a: a + said.pop(0))
        assert Workers(1, 2).text_from_first("/elsewhere") == "/läufe/文"

    def test_a_rate_that_the_first_lowers_is_everyones(self, settings, monkeypatch):
        """After a rollback; with rates of their own the workers' weights would drift apart."""
        said = collections.deque()

        def from_first(workers, tree):
            if workers.first:
                said.append(tree)
            return tree if workers.first else said.popleft()

        for name in ("from_first", "mean"):
            monkeypatch.setattr(Workers, name, from_first)
        monkeypatch.setattr(Workers, "announce", lambda *_: None)
        first, second = (training.Trainer(settings("addition"), Workers(n, 2)) for n in (0, 1))
        first.optimizer.learning_rate = first.learning_rate * ROLLBACK_FACTOR
        first.train_step()
        second.follow("step")
        assert second.learning_rate == first.learning_rate
        assert mx.array_equal(second.model.readout.weight, first.model.readout.weight)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("[METAL] Command buffer execution failed", RuntimeError),
            ("[ring] recv failed", WorkerLostError),
        ],
    )
    def test_a_device_that_fails_is_no_lost_worker(self, text, expected, monkeypatch):
        def fail(_):
            raise RuntimeError(text)

        monkeypatch.setattr(mx.distributed, "all_sum", fail)
        for exchange in (lambda w: w.mean(mx.ones(2)), lambda w: w.text_from_first("a")):
            with pytest.raises(expected, match=re.escape(text)) as caught:
                exchange(Workers(0, 2))
            assert caught.type is expected  # one is a kind of the other
            assert str(caught.value).count(text) == 1
            assert str(caught.value).count("lost the others") == (expected is WorkerLostError)

    def test_an_error_of_a_cell_is_no_lost_worker(self, settings, monkeypatch):
        """It keeps its own text, however many train together."""
        monkeypatch.setattr(mx.distributed, "all_sum", lambda array: array)
        trainer = training.Trainer(settings("addition"), Workers(0, 2))
        monkeypatch.setattr(trainer, "_announce", lambda _: None)

        def fail(*_):
            raise RuntimeError("a cell's own error")

        monkeypatch.setattr(trainer, "_batch_gradients", fail)
        with pytest.raises(RuntimeError, match=r"^a cell's own error$"):
            trainer.train_step()

    def test_shares_cover_a_batch(self):
        rows = [list(range(6))[Workers(rank, 3).share(6)] for rank in range(3)]
        assert rows == [[0, 1], [2, 3], [4, 5]]
        with pytest.raises(ValueError, match="'batch_size' must be a multiple of the 4 workers"):
            Workers(0, 4).share(6)

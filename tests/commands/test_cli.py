"""The commands, in this process and as a user starts them."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from processes import environment, wait_for_records

from mlx_tlstm import training
from mlx_tlstm.commands.main import main
from mlx_tlstm.commands.settings import setting_options
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks import TASKS

SIZES = ["--length", "2", "--depth", "2", "--hidden-size", "8", "--batch-size", "4"]
TINY = [*SIZES, "--samples", "24", "--eval-every", "8"]


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Run ``mlx-tlstm …`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


def module(name, *arguments, **settings):
    return subprocess.Popen(
        [sys.executable, "-m", f"mlx_tlstm.{name}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONUNBUFFERED="1"),
        **settings,
    )


def check_refusal(result, message):
    """Exit code 2, and one line that says why."""
    assert result.exit_code == 2, result.output
    *usage, line = result.output.strip().splitlines()
    assert line.startswith("Error: ")
    assert re.search(message, line), line
    assert not [text for text in usage if text and not text.startswith(("Usage:", "Try "))]


def test_help_has_every_option():
    result = CliRunner().invoke(main, ["train", "--help"])
    found = re.findall(r"^  --([a-z0-9-]+)", result.output, re.MULTILINE)
    fields = {field.name for field in dataclasses.fields(TrainingConfig)} - {"task"}
    expected = {name.replace("_", "-") for name in fields} | {
        "out",
        "paper",
        "resume",
        "track",
        "device",
        "backend",
        "help",
    }
    assert sorted(found) == sorted(expected)
    options = {p.name: p.help for p in main.commands["train"].params if isinstance(p, click.Option)}
    assert all(options.values())
    assert "``" not in result.output
    assert options["checkpoint_every"].endswith("by default --checkpoint-seconds alone decides.")
    assert options["on_divergence"].endswith("learning rate (rollback).  [default: stop]")
    assert options["beta2"].endswith("[default: 0.999]")
    varying = [name for name in options if not re.search(r"\[default: ", options[name] or "")]
    assert {"variant", "depth", "forget_bias", "samples", "kernel_size", "recompute"} <= {*varying}
    for name, task in TASKS.items():
        shown = result.output.split(f"  {name}:\n")[1].split(":\n")[0].split()
        parsed = [word for word in shown if word.startswith("--")]
        context = main.commands["train"].make_context("train", [name, *parsed])
        given = {k: v for k, v in context.params.items() if k in fields and v is not None}
        assert task.quick() == task.paper().replace(
            **dict.fromkeys(("samples", "epochs"), None) | given
        )
    assert {"train", "evaluate", "generate", "pull", "push"} <= set(main.commands)


SETTINGS = [field.name for field in dataclasses.fields(TrainingConfig)][1:]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_bad_value_of_each_setting(name, invoke):
    option = "--" + name.replace("_", "-")
    check_refusal(invoke("train", f"{option}="), rf"'?{option}'?\b|'{name}' must be")
    with pytest.raises(ValueError, match=rf"^\[TrainingConfig\] '{name}' must be .* but got <obj"):
        TASKS["addition"].quick().replace(**{name: object()})


def test_options_without_documentation(monkeypatch):
    """Of ``python -OO``."""
    monkeypatch.setattr(TrainingConfig, "__doc__", None)
    options = setting_options()(lambda: None).__click_params__
    assert sorted(option.name for option in options) == sorted(SETTINGS)


class Prepared(Exception):  # noqa: N818 (carries the configuration out of the command)
    pass


@pytest.fixture
def configuration(invoke, monkeypatch):
    """The configuration and folder that a command line asks for."""

    def stop(config, out, *_):
        raise Prepared(config, out)

    monkeypatch.setattr(training, "prepare", stop)
    return lambda *arguments: invoke("train", *arguments).exception.args


def test_defaults_come_from_the_task(configuration):
    assert configuration()[0] == next(iter(TASKS.values())).quick()
    for name, task in TASKS.items():
        assert configuration(name)[0] == task.quick()
        assert configuration(name, "--paper")[0] == task.paper()


def test_options_override(configuration, tmp_path):
    given = {
        "variant": "3d-tlstm",
        "depth": 3,
        "hidden_size": 33,
        "kernel_size": 4,
        "batch_size": 7,
        "length": 9,
        "learning_rate": 0.5,
        "samples": 77,
        "epochs": 2,
        "seed": 5,
        "forget_bias": -0.5,
        "beta2": 0.5,
        "clip_norm": 0.0,
        "clip_value": 2.0,
        "dtype": "bfloat16",
        "eval_every": 70,
        "accumulate": 7,
        "on_divergence": "rollback",
        "checkpoint_every": 5,
        "checkpoint_seconds": 0.0,
        "keep_checkpoints": 2,
        "data": str(tmp_path / "text"),
    }
    arguments = [
        part for name, value in given.items() for part in ("--" + name.replace("_", "-"), value)
    ]
    config, out = configuration("wikipedia", *arguments, "--recompute", "--out", "here")
    assert config == TrainingConfig(task="wikipedia", recompute=True, **given)
    assert out == Path("here")


def test_forget_bias_by_lag(configuration):
    assert configuration("addition", "--forget-bias", "lag")[0].forget_bias == "lag"


def test_default_folder(invoke, tmp_path, monkeypatch):
    """Its name has the time in it, and runs of one second have numbers besides."""
    monkeypatch.setattr("mlx_tlstm.training.runs.time.strftime", lambda form: form.replace("%", ""))
    printed = [invoke("train", "addition", *TINY).stdout.splitlines()[-1] for _ in range(3)]
    name = "runs/addition-2d-tlstm+cn-Ymd-HMS"
    names = [line.partition("run: ")[2] for line in printed]
    assert names == [name, f"{name}-2", f"{name}-3"]
    assert all((tmp_path / name / "test.json").exists() for name in names)


def test_default_folders_of_many_processes(tmp_path):
    """Claimed at once; each run is whole and alone in its folder."""
    code = (
        "import sys; from mlx_tlstm.config import TrainingConfig\n"
        "from mlx_tlstm.training.runs import RunFolder\n"
        "config = TrainingConfig.load(sys.argv[1])\n"
        "print(flush=True); sys.stdin.readline()\n"
        "for _ in range(20): print(RunFolder.create(None, config).path)\n"
    )
    TASKS["wikipedia"].quick().save(tmp_path / "config")
    command = [sys.executable, "-c", code, tmp_path / "config"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes) for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    names = [name for process in processes for name in process.communicate()[0].split()]
    assert len(set(names)) == len(names) == 80
    assert all((tmp_path / name / "config.json").exists() for name in names)
    assert len(list((tmp_path / "runs").iterdir())) == 80


@pytest.mark.parametrize("kind", ["file", "link to nothing"])
def test_no_default_folder(kind, invoke, tmp_path):
    place = tmp_path / "runs"
    if kind == "file":
        place.write_text("")
    else:
        place.symlink_to("nowhere")
    result = invoke("train", "addition", *TINY)
    assert result.exit_code in (1, 2)
    assert re.search(r"^Error: .*'?runs", result.output, re.MULTILINE)


def test_train_and_evaluate(invoke, tmp_path):
    result = invoke("train", "addition", *TINY, "--out", "run")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("addition · 2d-tlstm+cn · L=2 M=8 · ")
    assert len(lines) == 2 + 3 + 4
    *_, best, final, test, done = lines
    assert best.startswith("best: accuracy ")
    assert final.endswith("(test, after 24 samples)")
    assert re.fullmatch(r"done in [\d.]+ s; run: run", done)
    for arguments in ((), ("--weights", "last"), ("--split", "validation")):
        evaluated = invoke("evaluate", "run", *arguments)
        assert evaluated.exit_code == 0, evaluated.output
        assert re.match(r"(test|validation): accuracy .* %, loss \d\.\d{4} ", evaluated.stdout)
    metrics = test.removeprefix("test: ").removesuffix(" (best weights)")
    assert f"test: {metrics}, loss " in invoke("evaluate", "run").stdout
    again = invoke("train", "addition", *TINY, "--out", "run")
    check_refusal(again, r"'out' must be a folder without a run but 'run' already holds config")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["copy"], r"'copy' is not one of 'memorization', 'addition'"),
        (["--variant", "4d"], r"'--variant': '4d' is not one of 'slstm'"),
        (["--dtype", "int8"], r"'--dtype': 'int8' is not one of 'float32'"),
        (["--depth", "deep"], r"'--depth': 'deep' is not a valid integer"),
        (["--depth", "0"], r"'depth' must be an integer of 1 or more but got 0"),
        (["--hidden-size", "-1"], r"'hidden_size' must be an integer of 1 or more but got -1"),
        (["--kernel-size", "1"], r"'kernel_size' must be an integer of 2 or more but got 1"),
        (["--batch-size", "0"], r"'batch_size' must be an integer of 1 or more but got 0"),
        (["--seed", "-3"], r"'seed' must be an integer of 0 or more but got -3"),
        (["--seed", str(2**64)], r"'seed' must be below 2\^64 but got 18446744073709551616"),
        (["--samples", "1" + "0" * 30], r"'samples' must be below 2\^63 but got 1000"),
        (["--depth", "1" + "0" * 4000], r"'depth' must be below 2\^31 but got 1000"),
        (["--hidden-size", str(2**31)], r"'hidden_size' must be below 2\^31 but got 2147483648"),
        (["--batch-size", str(2**31)], r"'batch_size' must be below 2\^31 but got 2147483648"),
        (["--batch-size", str(2**31 - 1)], r"a training step must fit into .* batch_size \d+"),
        (["--length", str(2**63)], r"'length' must be below 2\^31 but got 9223372036854775808"),
        (["--length", str(2**31 - 1)], r"a training step must fit into .* length \d+"),
        (["--keep-checkpoints", str(2**63)], r"'keep_checkpoints' must be below 2\^63"),
        (["--learning-rate", "0"], r"'learning_rate' must be a positive number .* but got 0.0"),
        (["--learning-rate", "1e-46"], r"'learning_rate' must be a positive number that float32"),
        (["--learning-rate", "1e39"], r"'learning_rate' must be .* but got 1e\+39"),
        (["--clip-norm", "1e-46"], r"'clip_norm' must be .* that float32 holds but got 1e-46"),
        (["--learning-rate", "nan"], r"'learning_rate' must be a finite number but got nan"),
        (
            ["--clip-norm", "-1"],
            r"'clip_norm' must be 0 \(off\) or a positive number .* got -1.0",
        ),
        (
            ["--clip-value", "-1"],
            r"'clip_value' must be 0 \(off\) or .* got -1.0",
        ),
        (["--beta2", "1"], r"'beta2' must be from 0 to below 1 as float32, but got 1.0"),
        (["--beta2", "0.99999999"], r"'beta2' must be from 0 to below 1 as float32, but got 0.99"),
        (["--forget-bias", "leg"], r"'--forget-bias': 'leg' is not a number or 'lag'"),
        (["--forget-bias", "1e39"], r"\[TrainingConfig\] 'forget_bias' must be .* but got 1e\+39"),
        (["--forget-bias", "inf"], r"'forget_bias' must be a finite number or 'lag' but got inf"),
        (
            ["mnist", "--forget-bias", "lag"],
            r"'forget_bias' must be a number for mnist.* got 'lag'",
        ),
        (["--accumulate", "4"], r"'accumulate' must be a divisor of batch_size 15 but got 4"),
        (["--accumulate", "0"], r"'accumulate' must be an integer of 1 or more but got 0"),
        (["--on-divergence", "x"], r"'--on-divergence': 'x' is not one of 'stop', 'rollback'"),
        (["--checkpoint-every", "0"], r"'checkpoint_every' must be an integer of 1 or more"),
        (["--checkpoint-seconds", "-1"], r"'checkpoint_seconds' must be 0 \(off\) or a positive"),
        (["--keep-checkpoints", "0"], r"'keep_checkpoints' must be an integer of 1 or more"),
        (["--samples", "0"], r"'samples' must be an integer of 1 or more but got 0"),
        (["--epochs", "2"], r"'epochs' must be None for memorization.* but got 2"),
        (["--variant", "slstm", "--kernel-size", "3"], r"'kernel_size \(of slstm\)' must be"),
        (["--data", "x"], r"'data' must be None"),
        (["mnist", "--length", "30"], r"'length' must be a divisor of 784.* but got 30"),
        (["mnist", "--data", "gone"], r"'data' must be a folder but '.*gone' is missing"),
        (["wikipedia", "--data", "gone"], r"'data' must be a file but '.*gone' is missing"),
        (["--out", "file"], r"'out' must be a folder but got 'file'"),
        (["--out", "link"], r"'out' must be a folder but got 'link'"),
        (["--out", ""], r"\[train\] 'out' must be a path but got ''"),
        (["--out=~nobody-here/x"], r"\[train\] 'out' must be a path from a home folder that is"),
        (["wikipedia", "--data", ""], r"\[train\] 'data' must be a path but got ''"),
        (["--resume", ""], r"\[train\] 'resume' must be a path but got ''"),
        (["--resume", "file"], r"'run' must be a folder that holds config\.json but got 'file'"),
        (["--out", "file/run"], r"'out' must be writable \('.*file' is not\) but got 'file/run'"),
        (["--unknown", "1"], r"No such option.*--unknown"),
    ],
)
def test_refusals(arguments, message, invoke, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    check_refusal(invoke("train", *arguments), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "x" * 100_000),
        ("generate", "x" * 100_000),
        ("train", "wikipedia", "--data", "x" * 100_000),
        ("train", "--out", "x" * 100_000, *TINY),
        ("train", "--resume", "x" * 100_000),
        ("push", "x" * 100_000, "user/name"),
        ("pull", "x" * 100_000, "folder"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_errors_are_short(arguments, invoke):
    result = invoke(*arguments)
    assert result.exit_code in (1, 2)
    assert "Error: " in result.output
    assert len(result.output) < 3000


def test_unwritable_folder(invoke, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    check_refusal(invoke("train", "--out", "run"), r"'out' must be writable .* but got 'run'")


def test_evaluate_refusals(invoke, tmp_path):
    check_refusal(invoke("evaluate", "gone"), r"Error: \[load\] there is no folder 'gone'")
    check_refusal(invoke("evaluate", "."), r"'path' must be a folder that holds config\.json")
    invoke("train", *TINY, "--out", "run")
    check_refusal(invoke("evaluate", "run", "--split", "train"), r"'train' is not one of 'test'")
    (tmp_path / "run" / "best" / "model.safetensors").write_bytes(b"no weights")
    check_refusal(invoke("evaluate", "run"), r"must be a safetensors file but")
    (tmp_path / "run" / "config.json").write_text("{")
    check_refusal(invoke("evaluate", "run"), r"config\.json' must hold JSON but")


def test_layer_normalised_language_model(invoke, tmp_path):
    (tmp_path / "text").write_text("a tensor of cells " * 100)
    arguments = ["--data", "text", "--variant", "2d-tlstm+ln", "--out", "run"]
    assert "not causal" in invoke("train", "wikipedia", *TINY, *arguments).stderr
    evaluated = invoke("evaluate", "run")
    assert "not causal" in evaluated.stderr
    assert re.match(r"test: \d\.\d{4} bits per character", evaluated.stdout)
    assert re.search(r"best weights, N = \d+ streams, data .*text\)", evaluated.stdout)


def test_divergence(invoke, tmp_path):
    result = invoke("train", *TINY, "--learning-rate", "1e38", "--out", "run")
    assert result.exit_code == 1
    assert re.search(r"^Error: .* is (nan|inf) at step \d .*try a lower", result.stderr, re.M)


def test_full_disk(invoke, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "run/metrics.jsonl")

    monkeypatch.setattr("mlx_tlstm.training.runs.RunFolder.append_metrics", fail)
    result = invoke("train", *TINY, "--out", "run")
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("No space left on device: 'run/metrics.jsonl'")


def test_interrupt_while_loading(invoke, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "prepare", interrupted)
    result = invoke("train")
    assert (result.exit_code, result.stderr) == (130, "Interrupted\n")


def test_as_modules(tmp_path):
    process = module("train", *TINY, "--out", tmp_path / "run")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "run: " in out
    process = module("evaluate", tmp_path / "run")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith("test: accuracy ")
    process = module("train", "--help")
    assert "Usage: python -m mlx_tlstm.train [OPTIONS] [TASK]" in process.communicate(timeout=60)[0]


@pytest.mark.parametrize(
    ("signal_number", "code", "word"),
    [
        (signal.SIGINT, 130, "Interrupted"),
        (signal.SIGTERM, 143, "Terminated"),
        (signal.SIGHUP, 129, "Terminal closed"),
    ],
)
def test_stop_signals(signal_number, code, word, tmp_path, invoke):
    run = tmp_path / "a run"
    process = module(
        "train", *TINY[:-4], "--samples", "100000000", "--eval-every", "400", "--out", run
    )
    for _ in range(3):  # the start's two lines, and one evaluation
        assert process.stdout.readline()
    process.send_signal(signal_number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    line = err.strip().splitlines()[-1]
    pattern = rf"{word} after ([\d,]+) samples, which are saved; to go on: (.*)"
    samples, command = re.fullmatch(pattern, line).groups()
    assert shlex.split(command) == ["python", "-m", "mlx_tlstm.train", "--resume", str(run)]
    assert "Traceback" not in err
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert invoke("evaluate", run, "--weights", "last").exit_code == 0
    process = module(*shlex.split(command)[2].split(".")[1:], *shlex.split(command)[3:])
    for _ in range(3):
        assert process.stdout.readline()
    process.send_signal(signal_number)
    _, err = process.communicate(timeout=60)
    assert f"Going on after {samples} samples" in err.splitlines()


@pytest.mark.parametrize("nohup", [False, True])
def test_closed_terminal(nohup, tmp_path):
    """SIGHUP comes, and what is printed from then on fails; nohup keeps both away."""
    run = tmp_path / "run"
    sizes = [*TINY[:-4], "--samples", "100000000", "--eval-every", "400"]
    train = [sys.executable, "-m", "mlx_tlstm.train", *sizes, "--out", str(run)]
    code = (  # the terminal becomes that of the session that Popen starts
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *(["nohup"] if nohup else []), *train],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=tmp_path,
        env=environment(),
        start_new_session=True,
    )
    os.close(slave)
    try:
        records = wait_for_records(process, run, 1)
        os.close(master)
        if nohup:
            wait_for_records(process, run, records + 2)
            process.terminate()
        code = process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert code == (128 + signal.SIGTERM if nohup else 128 + signal.SIGHUP)
    newest = max((run / "checkpoints").iterdir())
    step = json.loads((newest / "state.json").read_text())["step"]
    assert step >= json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] > 0


def test_resume_with_moved_data(invoke, tmp_path):
    (tmp_path / "text").write_text("a tensor of cells " * 100)
    settings = [*TINY, "--checkpoint-every", "2", "--out", "run"]
    assert invoke("train", "wikipedia", "--data", "text", *settings).exit_code == 0
    (tmp_path / "run" / "test.json").unlink()
    (tmp_path / "text").rename(tmp_path / "elsewhere")
    check_refusal(invoke("train", "--resume", "run"), r"text' is missing; --data, or data=, says")
    refused = invoke("train", "--resume", "run", "--data", "gone")
    check_refusal(refused, r"'data' must be a file but '.*gone' is missing$")
    (tmp_path / "other").write_text("of a tensor's cell " * 100)
    refused = invoke("train", "--resume", "run", "--data", "other")
    assert refused.exit_code == 1
    assert "the data must be what the run was trained on but that in" in refused.stderr
    done = invoke("train", "--resume", "run", "--data", "elsewhere")
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["data"] == str(tmp_path / "elsewhere")
    assert invoke("evaluate", "run").exit_code == 0


def test_resume(invoke, tmp_path):
    invoke("train", "addition", *TINY, "--checkpoint-every", "4", "--out", "run")
    (tmp_path / "run" / "test.json").unlink()
    result = invoke("train", "--resume", "run")
    assert result.exit_code == 0, result.output
    assert result.stderr == "Going on after 16 samples\n"
    header, _, line, *_ = result.stdout.splitlines()
    assert header.startswith("addition · ")
    assert line.split()[:2] == ["24", "samples"]
    again = invoke("train", "--resume", "run")
    check_refusal(again, r"'run' must be a run that has not ended \(test\.json is there\)")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["addition"], "addition"),
        (["--depth", "2"], "--depth"),
        (["--paper", "--out", "x", "--recompute"], "--recompute, --out, --paper"),
        (["--checkpoint-every", "3", "--data", "x"], "--checkpoint-every"),
    ],
)
def test_resume_takes_no_settings(arguments, named, invoke):
    message = f"--resume goes on with the run's own settings and cannot take {named}$"
    check_refusal(invoke("train", *arguments, "--resume", "run"), message)


def test_resume_refusals(invoke, tmp_path):
    message = r"Error: \[RunFolder\] there is no folder 'gone'$"
    check_refusal(invoke("train", "--resume", "gone"), message)
    invoke("train", *TINY, "--out", "run")
    (tmp_path / "run" / "test.json").unlink()
    for state in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        state.write_text("{}")
    result = invoke("train", "--resume", "run")
    assert result.exit_code == 1
    message = f"Error: [RunOnDisk] no checkpoint is whole: checkpoint {tmp_path}/run/"
    assert message in result.stderr

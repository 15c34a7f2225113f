"""``mlx-tlstm data``: what it says and draws of each task's data."""

from __future__ import annotations

import os
import re
import types

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import image as matplotlib_image
from tiny_tasks import write_images, write_text

from mlx_tlstm.commands.data import best_constant
from mlx_tlstm.commands.main import main
from mlx_tlstm.files import TEMPORARY
from mlx_tlstm.tasks import TASKS, Batch, Memorization, Mnist, PermutedMnist, make_task


def _data(*arguments):
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def _facts(*arguments):
    """The description's facts by name, and its samples as blocks of lines."""
    done = _data(*arguments)
    assert done.exit_code == 0, done.output
    head, *samples = done.output.rstrip("\n").split("\n\n")
    return dict(line.split(": ", 1) for line in head.splitlines()), samples


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path)


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text")


def test_memorization():
    facts, samples = _facts("memorization", "--length", 3, "--batch-size", 2)
    guessing = facts.pop("guessing")
    assert re.fullmatch(
        r"the best constant answer has \d\.\d\d % of the test split right \(chosen by a .*\)",
        guessing,
    )
    assert facts == {
        "task": "memorization",
        "data": "generated",
        "sequences": "train generated at each step, validation 100, test 100",
        "symbols": f"65: {Memorization.alphabet}",
        "inputs": "2 × 8 of 65 symbols",
        "targets": "2 × 8 of 65 classes; 8 of 8 steps are trained on, 3 count",
    }
    assert len(samples) == 3
    for sample in samples:
        first, second = (line.split(maxsplit=1) for line in sample.splitlines())
        assert (first[0], second[0]) == ("input", "target")
        word = first[1][1:4]
        assert first[1] == f"-{word}----"
        assert second[1] == f"----{word}-"


def test_addition():
    _, samples = _facts("addition", "--length", 2)
    for sample in samples:
        first, second = (line.split()[1] for line in sample.splitlines())
        left, right, total = int(first[1:3]), int(first[4:6]), int(second[6:9])
        assert left + right == total


def test_best_constant_answer():
    """At each position of a whole sequence; over all of them where there is none, as in a text."""

    def task(targets, whole):
        batches = [Batch(np.array(rows), np.array(rows)) for rows in targets]
        return types.SimpleNamespace(
            eval_batches=lambda split: {"test": iter(batches)}[split],
            answer_positions=slice(1, 3),
            reports_sequences=whole,
        )

    three = [[[9, 1, 0], [9, 1, 0]], [[9, 0, 2]]]
    assert best_constant(task(three, whole=True)) == 4 / 6
    assert best_constant(task(three, whole=False)) == 3 / 6
    # A sequence that is longer has other positions.
    assert best_constant(task([[[9, 1, 0]], [[9, 1]]], whole=True)) == 2 / 3


def test_wikipedia(text):
    facts, samples = _facts("wikipedia", "--data", text, "--length", 9, "--batch-size", 4)
    raw = text.read_bytes()
    assert facts["data"] == str(text)
    assert facts["bytes"] == "train 3,600, validation 200, test 200"
    assert facts["symbols"].startswith(f"{len(set(raw))} byte values, with ace")
    assert facts["evaluation"] == "N = 4 streams"
    assert facts["inputs"] == f"4 × 9 of {len(set(raw))} symbols"
    assert samples[0].splitlines() == [
        f"input  {raw[3799:3808].decode()!r}",
        f"target {raw[3800:3809].decode()!r}",
    ]


def test_mnist(folder):
    facts, samples = _facts("mnist", "--data", folder, "--batch-size", 5)
    task = make_task(Mnist.quick().replace(data=str(folder), batch_size=5))
    labels = next(task.eval_batches("test")).targets[:, -1]
    assert facts["images"] == "train 50, validation 10, test 10"
    assert facts["digits 0 to 9, test"] == " ".join(map(str, np.bincount(labels, minlength=10)))
    assert facts["inputs"] == "5 × 28 × 28 from 0 to 1"
    assert facts["targets"] == "5 × 28 of 10 classes; 1 of 28 steps are trained on, 1 count"
    assert [sample.splitlines()[0] for sample in samples] == [
        f"target {label}, image" for label in labels[:3]
    ]


def _task(folder, kind=Mnist):
    return make_task(kind.quick().replace(data=str(folder), batch_size=5))


def test_digit_as_text(folder):
    """Left half black, right half white, in 14 lines."""
    task = _task(folder)
    batch = next(task.eval_batches("test"))
    batch.inputs[0].reshape(28, 28)[:, :14] = 0
    batch.inputs[0].reshape(28, 28)[:, 14:] = 1
    assert task.sample_lines(batch, 0)[1:] == [" " * 14 + "@" * 14] * 14


@pytest.mark.parametrize(("kind", "rows"), [(Mnist, 1), (PermutedMnist, 2)])
def test_picture(folder, tmp_path, kind, rows):
    path = tmp_path / "digits.png"
    done = _data(kind.name, "--data", folder, "--batch-size", 5, "--picture", path)
    assert done.exit_code == 0, done.output
    assert done.output.endswith(f"\npicture: {path}\n")
    picture = matplotlib_image.imread(path)[..., 0]
    assert picture.shape == (100 * rows + 30, 1000)
    # Random pixels on a white page: half of each of the ten columns' digits is dark.
    for column in np.split(picture, 10, axis=1):
        assert 0.2 < (column < 0.5).mean() < 0.5
    assert not [name for name in os.listdir(tmp_path) if name.startswith(TEMPORARY)]


def test_images_of_permuted_mnist_are_the_images(folder):
    tasks = [_task(folder, kind) for kind in (Mnist, PermutedMnist)]
    plain, permuted = (next(task.eval_batches("test")) for task in tasks)
    assert (plain.inputs != permuted.inputs).any()
    images = tasks[1].images(permuted)
    np.testing.assert_array_equal(images, tasks[0].images(plain))
    np.testing.assert_array_equal(images, plain.inputs.reshape(-1, 28, 28))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["memorization", "--picture", "a.png"], "--picture draws mnist and pmnist"),
        (["mnist", "--picture", "a.bmp"], "ends in .png, .pdf, .svg but got 'a.bmp'"),
        (["wikipedia", "--data", "absent"], "'data' must be a file but 'absent' is missing"),
        (["addition", "--length", "0"], "'length' must be an integer of 1 or more but got 0"),
        (["nothing"], "'nothing' is not one of"),
    ],
)
def test_bad_input(arguments, message):
    done = _data(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_unwritable_picture(folder, tmp_path):
    path, link = tmp_path / "absent" / "digits.png", tmp_path / "digits.png"
    done = _data("mnist", "--data", tmp_path / "gone", "--picture", path)  # before data is read
    assert done.exit_code == 2
    assert "there is no folder" in done.output
    link.symlink_to(path)
    done = _data("mnist", "--data", folder, "--batch-size", 5, "--picture", link)
    assert done.exit_code == 1
    assert "No such file or directory" in done.output
    assert done.output.splitlines()[-1].startswith("Error: ")


def test_every_task_is_described(folder, text):
    own = {"wikipedia": ["--data", text], "mnist": ["--data", folder], "pmnist": ["--data", folder]}
    for task in TASKS:
        facts, samples = _facts(task, *own.get(task, []), "--batch-size", 5)
        assert {"task", "data", "inputs", "targets"} < set(facts)
        assert samples


def test_more_than_the_memory_holds(monkeypatch):
    result = _data("addition", "--length", 2**31 - 1, "--batch-size", 2**31 - 1)
    assert result.exit_code == 2
    assert "Error: array is too big" in result.output

    def fail(*_):
        raise MemoryError("Unable to allocate 240 GiB")

    monkeypatch.setattr(Memorization, "train_batch", fail)
    result = _data("memorization")
    assert result.exit_code == 1
    assert result.output == "Error: There is too little memory. Unable to allocate 240 GiB\n"


@pytest.mark.parametrize(
    "text",
    [
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommand…).",
        "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed",
        "[metal::load_device] No Metal device available.",
        "[malloc] Unable to allocate 7516192768 bytes.",
        "cudaMallocAsync(&ptr, size, stream) failed: out of memory",
    ],
)
def test_a_device_that_fails(monkeypatch, text):
    def fail(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(Memorization, "train_batch", fail)
    result = _data("memorization")
    assert result.exit_code == 1
    reason = text.removesuffix(".")
    assert result.output.startswith(
        f"Error: The device has failed: {reason}. Less memory is needed"
    )


def test_other_errors_of_mlx_are_no_device_s(monkeypatch):
    def fail(*_):
        raise RuntimeError("[matmul] Last dimension of first input ...")

    monkeypatch.setattr(Memorization, "train_batch", fail)
    assert isinstance(_data("memorization").exception, RuntimeError)

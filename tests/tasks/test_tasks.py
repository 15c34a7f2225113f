"""The registry of tasks, and the two tasks whose samples are generated."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_tlstm.tasks import TASKS, Addition, Memorization, Task, make_task
from mlx_tlstm.tasks.addition import add_digits, addition_rows
from mlx_tlstm.tasks.memorization import memorization_rows
from mlx_tlstm.tasks.seeding import Stream, random_generator


def test_registry_order():
    assert list(TASKS)[:5] == ["memorization", "addition", "wikipedia", "mnist", "pmnist"]
    assert all(issubclass(task, Task) and task.name == name for name, task in TASKS.items())


def test_unknown_task():
    config = Memorization.quick().replace(task="copy")
    with pytest.raises(
        ValueError,
        match=r"'task' must be one of 'memorization', .* of your own that you put into TASKS, but",
    ):
        make_task(config)


@pytest.mark.parametrize("name", TASKS)
def test_settings(name):
    quick, paper = TASKS[name].quick(), TASKS[name].paper()
    assert quick.task == paper.task == name
    assert paper.variant == "3d-tlstm+cn"
    assert quick.variant == ("3d-tlstm+cn" if name == "memorization" else "2d-tlstm+cn")
    printed = 4.0 if "mnist" in name else 1.0
    assert paper.forget_bias == ("lag" if name == "memorization" else printed)
    assert quick.forget_bias == (2.0 if name == "memorization" else printed)
    assert paper.learning_rate == 1e-3


def test_paper_sizes():
    sizes = {
        name: (c.length, c.depth, c.hidden_size, c.batch_size, c.samples, c.epochs)
        for name, c in ((name, task.paper()) for name, task in TASKS.items())
    }
    printed = {
        "memorization": (20, 10, 100, 15, 5_000_000, None),
        "addition": (15, 7, 400, 15, 5_000_000, None),
        "wikipedia": (50, 6, 1200, 100, None, 50),
        "mnist": (784, 3, 100, 50, None, 100),
        "pmnist": (784, 5, 100, 50, None, 100),
    }
    assert {name: sizes[name] for name in printed} == printed


def _row(task, text):
    return task.encode(text)[None]


def test_addition_example():
    batch = addition_rows(_row(Addition, "123"), _row(Addition, "900"))
    assert Addition.decode(batch.inputs[0]) == "-123-900-----"
    assert Addition.decode(batch.targets[0]) == "--------1023-"


def test_memorization_example():
    batch = memorization_rows(_row(Memorization, "abccb"))
    assert Memorization.decode(batch.inputs[0]) == "-abccb------"
    assert Memorization.decode(batch.targets[0]) == "------abccb-"


@pytest.mark.parametrize(
    ("first", "second", "total"),
    [
        ("0", "0", "00"),
        ("9", "9", "18"),
        ("999", "001", "1000"),
        ("445", "555", "1000"),
        ("4445", "5550", "09995"),
        ("9090", "0919", "10009"),
        ("9" * 40, "0" * 39 + "1", "1" + "0" * 40),
    ],
)
def test_carries(first, second, total):
    digits = add_digits(_row(Addition, first), _row(Addition, second))
    assert Addition.decode(digits[0]) == total


@pytest.mark.parametrize("length", [1, 2, 3, 15, 25])
def test_addition_against_python_integers(length):
    task = Addition(Addition.quick().replace(length=length, batch_size=200))
    batch = task.train_batch(3)
    assert batch.inputs.shape == batch.targets.shape == (200, task.steps)
    assert batch.inputs.dtype == batch.targets.dtype == np.int32
    assert batch.fresh
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        empty, first, second, *rest = task.decode(inputs).split("-")
        assert (empty, len(first), len(second), rest) == ("", length, length, [""] * (length + 2))
        total = str(int(first) + int(second)).zfill(length + 1)
        assert task.decode(targets) == "-" * (2 * length + 2) + total + "-"
        assert task.decode(targets[task.answer_positions]) == total


@pytest.mark.parametrize("length", [1, 5, 20])
def test_memorization_rows(length):
    task = Memorization(Memorization.quick().replace(length=length, batch_size=300))
    batch = task.train_batch(0)
    assert batch.inputs.shape == batch.targets.shape == (300, 2 * length + 2)
    assert task.steps == 2 * length + 2
    shown = batch.inputs[:, 1 : length + 1]
    np.testing.assert_array_equal(batch.targets[:, task.answer_positions], shown)
    assert shown.min() == 0
    assert shown.max() == 63
    for row in (batch.inputs, batch.targets):
        assert (row == 64).sum() == row.size - shown.size


def test_digits_are_uniform():
    task = Addition(Addition.quick().replace(length=5, batch_size=10_000))
    digits = task.train_batch(0).inputs[:, 1:6]
    counts = np.bincount(digits.ravel(), minlength=10)
    assert counts.size == 10
    np.testing.assert_allclose(counts, 5000, atol=350)  # 5 standard deviations


@pytest.mark.parametrize("task_class", [Addition, Memorization])
def test_sizes_and_flags(task_class):
    task = make_task(task_class.quick())
    assert task.input_size == task.output_size == {"addition": 11, "memorization": 65}[task.name]
    assert (task.monitor, task.solved_at, task.reports_sequences) == ("test", 1.0, True)
    assert (task.metric, task.loss_positions) == ("accuracy", slice(None))
    assert task.train_steps == task.config.samples // 15


@pytest.mark.parametrize("task_class", [Addition, Memorization])
def test_batches_depend_on_seed_and_step_alone(task_class):
    config = task_class.quick().replace(length=12)
    task, again = task_class(config), task_class(config)
    later = again.train_batch(7).inputs
    np.testing.assert_array_equal(later, task.train_batch(7).inputs)
    batches = [task.train_batch(step).inputs for step in range(20)]
    batches.append(task_class(config.replace(seed=1)).train_batch(7).inputs)
    rows = np.concatenate(batches)
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize("task_class", [Addition, Memorization])
def test_splits_are_fixed_and_disjoint(task_class):
    config = task_class.quick().replace(length=12)
    task = task_class(config)
    splits = {split: next(task.eval_batches(split)) for split in ("validation", "test")}
    other_seed = task_class(config.replace(seed=9, batch_size=4))
    for split, batch in splits.items():
        assert batch.inputs.shape == (100, task.steps)
        np.testing.assert_array_equal(next(other_seed.eval_batches(split)).inputs, batch.inputs)
        assert len(list(task.eval_batches(split))) == 1
    train = [task.train_batch(step).inputs for step in range(10)]
    rows = np.concatenate([*train, *(batch.inputs for batch in splits.values())])
    assert len(np.unique(rows, axis=0)) == len(rows)
    with pytest.raises(ValueError, match="'split' must be one of 'validation', 'test' but got 'x'"):
        task.eval_batches("x")


@pytest.mark.parametrize(
    ("task_class", "train", "validation", "test"),
    [
        (Addition, "059994-258249", "499416-226337", "126119-092886"),
        (Memorization, "bK675E", "F8+AhQ", "hqRgk8"),
    ],
)
def test_samples_are_those_of_every_installation(task_class, train, validation, test):
    """Figures are compared that were measured on them."""
    task = task_class(task_class.quick().replace(length=6, seed=0))
    splits = {split: next(task.eval_batches(split)) for split in ("validation", "test")}
    found = [batch.inputs[0] for batch in (task.train_batch(0), *splits.values())]
    assert [task.decode(row).strip("-") for row in found] == [train, validation, test]


def test_generators_never_coincide():
    """Seeds, streams and indices whose words, run together, would read the same."""
    keys = [(5, Stream.TRAIN, 0), (0, Stream.TRAIN, 5), (5 + (1 << 32), Stream.TRAIN, 0)]
    keys += [(5, Stream.VALIDATION, 0), (0, Stream.VALIDATION, 0), (0, Stream.TEST, 0)]
    keys += [(0, Stream.TRAIN, 0), (0, Stream.MODEL, 0)]
    draws = {random_generator(*key).integers(1 << 62) for key in keys}
    assert len(draws) == len(keys)


@pytest.mark.parametrize("task_class", [Addition, Memorization])
def test_user_data_is_refused(task_class):
    with pytest.raises(ValueError, match=r"'data' must be None, .* but got 'text.txt'"):
        make_task(task_class.quick().replace(data="text.txt"))


def test_no_epochs():
    task = make_task(Addition.quick().replace(samples=None, epochs=1))
    with pytest.raises(ValueError, match=r"\[Addition\] 'epochs' must be None for addition"):
        _ = task.train_steps


def test_encode_unknown_character():
    with pytest.raises(ValueError, match=r"\[Addition\] 'text' must be made of .* but got 'ax'"):
        Addition.encode("1x2a")
    np.testing.assert_array_equal(Addition.encode("09-"), [0, 9, 10])

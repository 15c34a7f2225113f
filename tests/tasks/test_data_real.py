"""Real MNIST and real Wikipedia text, checked against figures known without this project."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from data_sources import FetchError, fetch_mnist, fetch_wikipedia

from mlx_tlstm.tasks import Mnist, PermutedMnist, Wikipedia, make_task

pytestmark = pytest.mark.network


@pytest.fixture(scope="session")
def data_cache(request, tmp_path_factory):
    """Where downloads stay: MLX_TLSTM_TEST_CACHE, else pytest's cache, else a passing folder."""
    if chosen := os.environ.get("MLX_TLSTM_TEST_CACHE"):
        return Path(chosen)
    cache = getattr(request.config, "cache", None)
    return cache.mkdir("data") if cache else tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def mnist_folder(data_cache):
    try:
        return fetch_mnist(data_cache / "mnist")
    except FetchError as error:
        pytest.skip(f"MNIST could not be downloaded: {error}")


@pytest.fixture(scope="session")
def wikipedia_file(data_cache):
    try:
        return fetch_wikipedia(data_cache / "wikipedia")
    except FetchError as error:
        pytest.skip(f"the Wikipedia text could not be downloaded: {error}")


def _split(task, name):
    batches = list(task.eval_batches(name))
    return np.concatenate([b.inputs for b in batches]), np.concatenate([b.targets for b in batches])


def test_mnist(mnist_folder):
    task = make_task(Mnist.quick().replace(data=str(mnist_folder)))
    assert task.samples_per_epoch == 50_000
    test, test_labels = _split(task, "test")
    validation, validation_labels = _split(task, "validation")
    assert test.shape == validation.shape == (10_000, 28, 28)
    assert test_labels[:5, -1].tolist() == [7, 2, 1, 0, 4]
    # The test file's published digit counts.
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(test_labels[:, -1]).tolist() == counts
    epoch = [task.train_batch(step) for step in range(1000)]
    train = np.concatenate([batch.inputs for batch in epoch])
    train_labels = np.concatenate([batch.targets[:, -1] for batch in epoch])
    every = np.concatenate([train_labels, validation_labels[:, -1]])
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(every).tolist() == counts
    # The training file's mean pixel, known as 0.1307.
    assert abs((5 * train.mean(dtype=float) + validation.mean(dtype=float)) / 6 - 0.1307) < 1e-4
    # Nearest class mean is right for 82 % of the test images: images and labels belong together.
    means = np.stack([train[train_labels == digit].mean(axis=0).ravel() for digit in range(10)])
    scores = test.reshape(len(test), -1) @ means.T - (means**2).sum(axis=1) / 2
    accuracy = (scores.argmax(axis=1) == test_labels[:, -1]).mean()
    assert abs(accuracy - 0.820) < 0.005


def test_permuted_mnist(mnist_folder):
    config = PermutedMnist.quick().replace(data=str(mnist_folder), length=784)
    plain, _ = _split(make_task(config.replace(task="mnist")), "validation")
    permuted, _ = _split(make_task(config), "validation")
    assert permuted.shape == (10_000, 784, 1)
    np.testing.assert_array_equal(np.sort(permuted[:100], axis=1), np.sort(plain[:100], axis=1))
    # A pixel resembles the next one in scan-line order, and hardly in the permuted order.
    likeness = [np.corrcoef(x[:, :-1].ravel(), x[:, 1:].ravel())[0, 1] for x in (plain, permuted)]
    assert likeness[0] > 0.7 > 0.5 > likeness[1]


def test_wikipedia(wikipedia_file):
    task = make_task(Wikipedia.quick().replace(data=str(wikipedia_file)))
    assert task.output_size == 201
    assert task.splits["test"] == (5_785_258, 6_089_746)
    raw = wikipedia_file.read_bytes()
    assert raw.startswith(b"<mediawiki")
    batch = task.train_batch(0)
    assert task.decode(batch.inputs[0]) == raw[:50].decode()
    assert task.decode(batch.targets[0]) == raw[1:51].decode()


def test_wikipedia_entropies(wikipedia_file):
    """Counts of bytes and of pairs, from the training batches, predict the test split."""
    task = make_task(Wikipedia.quick().replace(data=str(wikipedia_file)))
    size = task.output_size
    pairs = np.zeros(size * size, dtype=np.int64)
    for step in range(task.samples_per_epoch // task.config.batch_size):
        batch = task.train_batch(step)
        pairs += np.bincount((batch.inputs * size + batch.targets).ravel(), minlength=size**2)
    pairs = pairs.reshape(size, size)
    order_0 = -np.log2((pairs.sum(axis=0) + 1) / (pairs.sum() + size))
    order_1 = -np.log2((pairs + 0.1) / (pairs.sum(axis=1, keepdims=True) + 0.1 * size))
    tested = list(task.eval_batches("test"))
    inputs = np.concatenate([b.inputs.ravel() for b in tested])
    targets = np.concatenate([b.targets.ravel() for b in tested])
    assert targets.size == 304_488
    assert abs(order_0[targets].mean() - 5.09) < 0.01
    assert abs(order_1[inputs, targets].mean() - 3.92) < 0.02

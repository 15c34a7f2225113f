"""The two image tasks on small made files."""

from __future__ import annotations

import gzip
import io
import struct

import datasets
import numpy as np
import pytest
from data_sources import image_dataset
from PIL import Image

from mlx_tlstm.tasks import DataUnavailableError, Mnist, PermutedMnist, downloads, make_task, mnist

TRAIN, TEST = 60, 13


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return {
        "train-images": rng.integers(0, 256, (TRAIN, 28, 28), dtype=np.uint8),
        "train-labels": rng.permutation(np.arange(TRAIN) % 10).astype(np.uint8),
        "t10k-images": rng.integers(0, 256, (TEST, 28, 28), dtype=np.uint8),
        "t10k-labels": rng.permutation(np.arange(TEST) % 10).astype(np.uint8),
    }


def _idx(array):
    """The bytes of an IDX file of unsigned bytes."""
    return struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape) + array.tobytes()


def _write_idx(folder, arrays, mark="-", end=""):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in arrays.items():
        content = _idx(array)
        path = folder / f"{stem}{mark}idx{array.ndim}-ubyte{end}"
        path.write_bytes(gzip.compress(content) if end else content)
    return folder


@pytest.fixture
def folder(tmp_path, arrays):
    return _write_idx(tmp_path, arrays)


def _task(folder, task_class=Mnist, **changes):
    settings = {"data": str(folder), "batch_size": 7, **changes}
    return make_task(task_class.quick().replace(**settings))


def _epoch(task, epoch=0):
    steps = task.samples_per_epoch // task.config.batch_size
    batches = [task.train_batch(epoch * steps + step) for step in range(steps)]
    return np.concatenate([b.inputs for b in batches]), np.concatenate([b.targets for b in batches])


def _split(task, name):
    batches = list(task.eval_batches(name))
    return np.concatenate([b.inputs for b in batches]), np.concatenate([b.targets for b in batches])


def _places(images, inputs):
    """Which of ``images`` each of ``inputs`` shows."""
    flat = images.reshape(len(images), -1).astype(np.float32) / 255
    shown = inputs.reshape(len(inputs), 1, -1)
    matches = (flat == shown).all(axis=-1)
    assert (matches.sum(axis=1) == 1).all()
    return matches.argmax(axis=1)


@pytest.mark.parametrize(("mark", "end"), [("-", ""), (".", ""), ("-", ".gz"), (".", ".gz")])
def test_splits(tmp_path, arrays, mark, end):
    task = _task(_write_idx(tmp_path, arrays, mark, end))
    assert (task.input_size, task.output_size, task.steps) == (28, 10, 28)
    assert task.loss_positions == task.answer_positions == slice(-1, None)
    assert task.samples_per_epoch == 49
    assert task.train_steps == 7
    for name, images, labels in [
        ("validation", arrays["train-images"][50:], arrays["train-labels"][50:]),
        ("test", arrays["t10k-images"], arrays["t10k-labels"]),
    ]:
        inputs, targets = _split(task, name)
        assert (inputs.dtype, targets.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(inputs, images.astype(np.float32) / 255)
        np.testing.assert_array_equal(targets, np.repeat(labels[:, None], 28, axis=1))
    assert 0 <= inputs.min() < inputs.max() <= 1


@pytest.mark.parametrize("name", ["validation", "test"])
def test_images_of_many_batches(name, folder, monkeypatch):
    task = _task(folder)
    (whole,) = task.eval_batches(name)
    monkeypatch.setattr(mnist, "EVAL_BATCH", 4)
    sizes = [len(batch.inputs) for batch in task.eval_batches(name)]
    assert sizes == {"validation": [4, 4, 2], "test": [4, 4, 4, 1]}[name]
    for found, expected in zip(_split(task, name), (whole.inputs, whole.targets), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_epochs_are_shuffled(folder, arrays):
    task = _task(folder)
    orders = []
    for epoch in range(3):
        inputs, targets = _epoch(task, epoch)
        order = _places(arrays["train-images"][:50], inputs)
        assert len(set(order)) == 49
        np.testing.assert_array_equal(targets[:, -1], arrays["train-labels"][order])
        orders.append(order)
    orders.append(_places(arrays["train-images"][:50], _epoch(_task(folder, seed=1))[0]))
    assert len({tuple(order) for order in orders}) == 4
    np.testing.assert_array_equal(_epoch(_task(folder), 2)[0], inputs)


def test_rows_are_reshaped_pixels(folder):
    for task_class in (Mnist, PermutedMnist):
        rows = _task(folder, task_class).train_batch(2)
        pixels = _task(folder, task_class, length=784).train_batch(2)
        assert pixels.inputs.shape == (7, 784, 1)
        np.testing.assert_array_equal(pixels.inputs.reshape(7, 28, 28), rows.inputs)
        np.testing.assert_array_equal(pixels.targets[:, -1], rows.targets[:, -1])


def test_permutation(folder):
    plain, _ = _split(_task(folder, length=784), "test")
    permuted, _ = _split(_task(folder, PermutedMnist, length=784), "test")
    other_seed, _ = _split(_task(folder, PermutedMnist, length=784, seed=5), "test")
    np.testing.assert_array_equal(permuted, other_seed)
    order = PermutedMnist.permutation
    np.testing.assert_array_equal(np.sort(order), np.arange(784))
    assert (order == np.arange(784)).sum() < 8
    np.testing.assert_array_equal(permuted, plain[:, order])
    # The order is part of the task: figures from different installations must compare.
    np.testing.assert_array_equal(order[:6], [693, 85, 647, 392, 765, 14])


def test_length_must_divide(folder):
    assert _task(folder, length=196).input_size == 4
    with pytest.raises(ValueError, match=r"'length' must be a divisor of 784, .* but got 30"):
        _task(folder, length=30)


def test_too_few_images(tmp_path, arrays):
    with pytest.raises(ValueError, match="filling a batch of 51, but got 60"):
        _task(_write_idx(tmp_path, arrays), batch_size=51)
    five = {stem: array[:5] for stem, array in arrays.items()}
    with pytest.raises(ValueError, match=r"'data' must be of 6 training images or more.* got 5"):
        _task(_write_idx(tmp_path, five), batch_size=1)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (IMAGES, lambda b: b[:-1], r"of 47056 bytes for 60 × 28 × 28 values but got 47055"),
        (IMAGES, lambda b: b + b"x", r"of 47056 bytes .* but got 47057"),
        (IMAGES, lambda b: b[:9], "of 16 bytes or more but got 9"),
        (IMAGES, lambda b: b"", "of 16 bytes or more but got 0"),
        (IMAGES, lambda b: b"\x01" + b[1:], "with magic number 2051 but got 16779267"),
        (LABELS, lambda b: b[:-3], "of 68 bytes for 60 values but got 65"),
        (LABELS, lambda b: b"PK" + b[2:], "with magic number 2049 but got"),
        (LABELS, lambda b: _idx(np.zeros(59, np.uint8)), f"long as {IMAGES}, 60 labels, .* 59"),
        (LABELS, lambda b: b[:-1] + b"\x0a", "of labels from 0 to 9 but got '0 to 10'"),
        (IMAGES, lambda b: _idx(np.zeros((60, 28, 27), np.uint8)), r"28 × 28 but got \(28, 27\)"),
        (IMAGES, lambda b: _idx(np.zeros((60,), np.uint8)) + b"0" * 8, "number 2051 but got 2049"),
    ],
)
def test_damaged_files(folder, name, damage, message):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{name}' must be .*{message}"):
        _task(folder)


def test_no_images(tmp_path, arrays):
    empty = {stem: array[:0] for stem, array in arrays.items()}
    with pytest.raises(ValueError, match=f"{IMAGES}' must be of one image or more but got 0"):
        _task(_write_idx(tmp_path, empty))


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b[:7], lambda b: b[:30] * 3])
def test_damaged_gzip(tmp_path, arrays, damage):
    path = _write_idx(tmp_path, arrays, end=".gz") / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{IMAGES}\.gz' must be a whole gzip file but"):
        _task(tmp_path)


def test_first_bytes_say_what_is_packed(tmp_path, arrays):
    """Browsers unpack a download and keep its name."""
    plain = _write_idx(tmp_path / "plain", arrays)
    packed = _write_idx(tmp_path / "packed", arrays, end=".gz")
    for path in packed.iterdir():
        path.write_bytes((plain / path.stem).read_bytes())
    expected = _split(_task(plain), "test")[0]
    np.testing.assert_array_equal(_split(_task(packed), "test")[0], expected)
    for path in plain.iterdir():
        path.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(_split(_task(plain), "test")[0], expected)


@pytest.mark.parametrize("place", ["mnist", "MNIST/raw", "{name}", "archive/{name}", "{half}"])
def test_archives_unpack_into_folders(folder, tmp_path, arrays, place):
    """All four one or two folders below, each in one of its own, or two and two."""
    other = tmp_path / "other"
    for number, (stem, array) in enumerate(arrays.items()):
        name = f"{stem}-idx{array.ndim}-ubyte"
        path = other / place.format(name=name, half=number % 2) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_idx(array))
    expected = _split(_task(folder), "test")[0]
    np.testing.assert_array_equal(_split(_task(other), "test")[0], expected)
    # The nearest files count.
    np.testing.assert_array_equal(_split(_task(tmp_path), "test")[0], expected)


def test_more_than_one_mnist(tmp_path, arrays):
    for name in ("fashion", "mnist"):
        _write_idx(tmp_path / name, arrays)
    message = rf"holds train-images once but got \['.*/fashion/{IMAGES}', '.*/mnist/{IMAGES}'\]"
    with pytest.raises(ValueError, match=message):
        _task(tmp_path)
    (tmp_path / "fashion" / IMAGES).unlink()
    with pytest.raises(ValueError, match=r"holds train-labels once but got \['.*/fashion/.*', '"):
        _task(tmp_path)


def test_a_part_beside_its_own_copies(folder, tmp_path, arrays):
    """Packed and unpacked, as torchvision leaves them, and again one folder below."""
    other = _write_idx(tmp_path / "other", arrays)
    for number, path in enumerate(list(other.iterdir())):
        path.with_name(f"{path.name}.gz").write_bytes(b"damaged")
        copy = other / str(number) / path.name
        copy.parent.mkdir()
        copy.write_bytes(b"damaged")
    np.testing.assert_array_equal(_split(_task(other), "test")[0], _split(_task(folder), "test")[0])


def test_stray_parquet(tmp_path, arrays, hub_cache):
    _write_idx(tmp_path, arrays)
    for name in ("notes.parquet", "train.parquet", "._test.parquet"):
        (tmp_path / name).write_bytes(b"PAR1")
    assert _task(tmp_path).split_sizes()["test"] == TEST
    (tmp_path / IMAGES).unlink()
    with pytest.raises(ValueError, match=f"with one of {IMAGES}, .* holds .*notes.parquet"):
        _task(tmp_path)


def test_a_folder_is_no_file(tmp_path, arrays):
    _write_idx(tmp_path, arrays)
    (tmp_path / LABELS).unlink()
    (tmp_path / LABELS).mkdir()
    with pytest.raises(ValueError, match=rf"with one of {LABELS}, .* {LABELS}/$"):
        _task(tmp_path)


def test_wrong_folders(folder):
    (folder / "t10k-labels-idx1-ubyte").rename(folder / "labels")
    with pytest.raises(ValueError, match=r"with one of t10k-labels-idx1-ubyte, .* holds labels"):
        _task(folder)
    with pytest.raises(
        FileNotFoundError, match=r"'data' must be a folder but .*absent' is missing"
    ):
        _task(folder / "absent")
    with pytest.raises(ValueError, match="'data' must be a folder of MNIST files but got"):
        _task(folder / "labels")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Keep what `datasets` prepares out of the user's cache."""
    path = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", path)
    return path


def _write_parquet(folder, arrays):
    folder.mkdir(parents=True)
    for split, stem in (("train", "train"), ("test", "t10k")):
        split_set = image_dataset(arrays[f"{stem}-images"], arrays[f"{stem}-labels"])
        split_set.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("place", ["flat", "nested/mnist", "p [1]", "p*", "p?", "nested/p[!x]"])
def test_parquet_equals_idx(folder, tmp_path, arrays, hub_cache, place):
    written = _write_parquet(tmp_path / "hub" / place, arrays)
    (written / "train-notes.txt").write_text("none of the data")
    if not place.startswith("nested"):
        for beside in ("p 1", "p neighbour", "px"):
            (written.parent / beside).mkdir()
            (written.parent / beside / "test-00000-of-00001.parquet").write_bytes(b"damaged")
    task = _task(tmp_path / "hub" if place.startswith("nested") else written)
    plain = _task(folder)
    for split in ("validation", "test"):
        for found, expected in zip(_split(task, split), _split(plain, split), strict=True):
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(_epoch(task)[0], _epoch(plain)[0])


def test_parquet_without_type_metadata(folder, tmp_path, arrays, hub_cache):
    import pyarrow.parquet as pq

    written = _write_parquet(tmp_path / "hub", arrays)
    for path in written.iterdir():
        pq.write_table(pq.read_table(path).replace_schema_metadata(), path)
    found, expected = _split(_task(written), "test"), _split(_task(folder), "test")
    np.testing.assert_array_equal(found[0], expected[0])


def test_wrong_parquet(tmp_path, arrays, hub_cache):
    written = _write_parquet(tmp_path / "hub", arrays)
    test = written / "test-00000-of-00001.parquet"
    image_dataset(np.zeros((3, 28, 27), np.uint8), np.zeros(3, int)).to_parquet(test)
    with pytest.raises(ValueError, match=r"of grey images of 28 × 28 but got \('L', 27, 28\)"):
        _task(written)
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(test)
    with pytest.raises(ValueError, match=r"readable parquet files but .* gave CastError: Couldn't"):
        _task(written)
    train = written / "train-00000-of-00001.parquet"
    train_bytes = train.read_bytes()
    train.write_bytes(test.read_bytes())
    with pytest.raises(
        ValueError, match=r"train' must be of columns image, label but got \['text'"
    ):
        _task(written)
    train.write_bytes(train_bytes)
    test.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="must be a folder of readable parquet files but"):
        _task(written)
    test.unlink()
    with pytest.raises(ValueError, match=r"split into 'train' and 'test' but got \['train'\]"):
        _task(written)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", ["1", "2", "3"], r"of whole numbers as labels but got \['1', '2', '3'\]"),
        ("label", [1.0, 2.5, 3.0], r"of whole numbers as labels but got \[2.5\]"),
        ("label", [1, None, 3], r"of whole numbers as labels but got \[None\]"),
        ("label", [1.0, float("nan"), 3.0], r"of whole numbers as labels but got \[nan\]"),
        ("label", [[1], [2], [3]], r"of whole numbers as labels but got \[\[1\], \[2\], \[3\]\]"),
        ("label", [1, 2, 10], "of labels from 0 to 9"),
        ("image", [1, 2, 3], "of images that can be decoded but"),
        ("image", [{"bytes": b"no", "path": None}] * 3, "of images that can be decoded but"),
        ("image", [None] * 3, "of grey images of 28 × 28 but got None"),
        ("image", "I;16", r"of grey images of 28 × 28 but got \('I;16', 28, 28\)"),
        ("image", "RGB", r"of grey images of 28 × 28 but got \('RGB', 28, 28\)"),
        ("image", "P", r"of grey images of 28 × 28 but got \('P', 28, 28\)"),
    ],
)
def test_other_parquet(tmp_path, hub_cache, column, values, message):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def pictures(mode):
        file = io.BytesIO()
        Image.new(mode, (28, 28)).save(file, format="png")
        return [{"bytes": file.getvalue(), "path": None}] * 3

    columns = {"image": pictures("L"), "label": [1, 2, 3]}
    columns[column] = pictures(values) if isinstance(values, str) else values
    for name in ("train", "test"):
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=message):
        _task(tmp_path, batch_size=1)


def test_offline_message_comes_at_once(hub_cache, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets, "load_dataset", None)  # must not be reached: it retries for long
    with pytest.raises(DataUnavailableError) as caught:
        _task(None, data=None)
    for part in (
        '"ylecun/mnist"',
        "http://127.0.0.1:9 does not answer",
        "--data PATH",
        str(hub_cache),
    ):
        assert part in str(caught.value)


def test_offline_with_a_cache_still_loads(hub_cache, monkeypatch):
    """Where a copy is cached the hub's silence is for `datasets` to judge."""

    def fail(name):
        raise ConnectionError(f"Couldn't reach '{name}'")

    (hub_cache / "ylecun___mnist").mkdir(parents=True)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(downloads, "_hub_failure", lambda endpoint: "no route")
    with pytest.raises(DataUnavailableError, match=r"failed \(ConnectionError.*HF_HUB_OFFLINE=1"):
        _task(None, data=None)

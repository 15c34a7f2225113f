"""Reading MNIST from the hub, from its four IDX files, or from parquet files."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlx_tlstm.checks import require
from mlx_tlstm.tasks.downloads import load_mnist_from_hub

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SIDE = 28
CLASSES = 10
IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049  # unsigned bytes in three dimensions, and in one
OWNER = "Mnist"


class LabelledImages(NamedTuple):
    """Images ``[N, 28, 28]`` uint8 and their classes ``[N]`` uint8."""

    images: np.ndarray
    labels: np.ndarray


def load_mnist(data: str | None) -> tuple[LabelledImages, LabelledImages]:
    """Training and test images.

    Args:
        data: A folder of the four IDX files (``train-images-idx3-ubyte`` and so on; ``.idx3`` and
            ``.gz`` too) or of parquet files in the hub's schema; ``None`` loads from the hub.

    Raises:
        ValueError: A file is missing, damaged, or not MNIST.
        FileNotFoundError: There is no such folder.
        DataUnavailableError: ``data`` is ``None`` and the hub cannot be reached.
    """
    if data is None:
        return _from_datasets(load_mnist_from_hub(), "the hub's data set")
    folder = Path(data)
    if not folder.exists():
        raise FileNotFoundError(f"[{OWNER}] 'data' must be a folder but {data!r} is missing")
    require(folder.is_dir(), OWNER, "data", "a folder of MNIST files", data)
    if next(folder.rglob("*.parquet"), None) is not None:
        return _from_parquet(folder)
    return _from_idx(folder, "train"), _from_idx(folder, "t10k")


def _from_idx(folder: Path, prefix: str) -> LabelledImages:
    image_path = _find_idx(folder, f"{prefix}-images", "idx3")
    label_path = _find_idx(folder, f"{prefix}-labels", "idx1")
    images = read_idx(image_path, IMAGE_MAGIC)
    labels = read_idx(label_path, LABEL_MAGIC)
    require(
        len(images) == len(labels),
        OWNER,
        label_path.name,
        f"as long as {image_path.name}, {len(images)} labels,",
        len(labels),
    )
    return _checked(images, labels, str(image_path), str(label_path))


def _find_idx(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{mark}{kind}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise ValueError(
        f"[{OWNER}] 'data' must be a folder with one of {', '.join(names)}, or with parquet "
        f"files, but {str(folder)!r} holds {present}"
    )


def read_idx(path: Path, magic: int) -> np.ndarray:
    """The array in an IDX file of unsigned bytes: big-endian magic and sizes, then the values.

    Raises:
        ValueError: The file is damaged, has another magic number, or another length than its
            sizes say.
    """
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"[{OWNER}] '{path}' must be a whole gzip file but {error}") from error
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    require(len(raw) >= header, OWNER, str(path), f"of {header} bytes or more", len(raw))
    found, *shape = struct.unpack(f">{1 + dimensions}I", raw[:header])
    require(found == magic, OWNER, str(path), f"an IDX file with magic number {magic}", found)
    expected = header + int(np.prod(shape, dtype=object))
    sizes = " × ".join(map(str, shape))
    require(
        len(raw) == expected, OWNER, str(path), f"of {expected} bytes for {sizes} values", len(raw)
    )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def _from_parquet(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        loaded = load_dataset(str(folder))
    except (DatasetsError, OSError, ValueError) as error:
        reason = error.__cause__ or error
        detail = " ".join(str(reason).split())
        raise ValueError(
            f"[{OWNER}] 'data' must be a folder of readable parquet files but {str(folder)!r} "
            f"gave {type(reason).__name__}: {detail}"
        ) from error
    return _from_datasets(loaded, str(folder))


def _from_datasets(splits: DatasetDict, source: str) -> tuple[LabelledImages, LabelledImages]:
    missing = [name for name in ("train", "test") if name not in splits]
    require(not missing, OWNER, source, "split into 'train' and 'test'", sorted(splits))
    return _decode(splits["train"], f"{source}, train"), _decode(splits["test"], f"{source}, test")


def _decode(split: Dataset, source: str) -> LabelledImages:
    from datasets import Image

    columns = sorted(split.column_names)
    require({"image", "label"} <= set(columns), OWNER, source, "of columns image, label", columns)
    if not isinstance(split.features["image"], Image):  # parquet that no `datasets` wrote
        split = split.cast_column("image", Image())
    shapes, images = set(), np.empty((len(split), SIDE, SIDE), dtype=np.uint8)
    for index, image in enumerate(split["image"]):
        pixels = np.asarray(image)
        if pixels.shape != (SIDE, SIDE):
            shapes.add(pixels.shape)
            break
        images[index] = pixels
    require(not shapes, OWNER, source, "of grey images of 28 × 28", shapes)
    return _checked(images, np.asarray(split["label"][:]), source, source)


def _checked(
    images: np.ndarray, labels: np.ndarray, image_source: str, label_source: str
) -> LabelledImages:
    require(len(images) > 0, OWNER, image_source, "of one image or more", len(images))
    size = images.shape[1:]
    require(size == (SIDE, SIDE), OWNER, image_source, "of images of 28 × 28", size)
    low, high = int(labels.min()), int(labels.max())
    valid = low >= 0 and high < CLASSES
    require(valid, OWNER, label_source, "of labels from 0 to 9", f"{low} to {high}")
    return LabelledImages(images, labels.astype(np.uint8))

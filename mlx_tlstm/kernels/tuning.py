"""The tiles that ``scripts/tune.py`` measured as the fastest on this device.

The file is JSON: device (and whether TF32 is off), then a product as ``kernel dtype rows x columns
x depth``, then the winner's sizes, or ``null`` where MLX's own matrix product was faster than every
tile, with the kernels that it needs around it (:mod:`mlx_tlstm.kernels.windows`).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx

from mlx_tlstm.checks import dtype_name, require
from mlx_tlstm.files import cache_folder, read_json, replace_text, to_path
from mlx_tlstm.kernels.tiles import Tile, choose

#: The first generation of Apple's GPUs with units for whole matrix products (M5), that of those
#: whose names end in "p" (of iPhones' chips), and the macOS from which on MLX uses them.
_FIRST_WITH_UNITS, _FIRST_SMALL_WITH_UNITS, _MACOS = 17, 18, (26, 2)

_TF32_VARIABLE = "MLX_ENABLE_TF32"
#: Names another file than the one in the user's cache folder.
ENVIRONMENT_VARIABLE = "MLX_TLSTM_TUNING"


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product ``[rows, depth]`` by ``[depth, columns]`` that a kernel computes.

    Args:
        kernel: Name of the kernel.
        dtype: Type of the factors.
        rows: B·P forward, B·(P + 1) for the input's gradient, O for the weight's.
        columns: O, M, and <K>·M + 1 (M as the kernel sees it, a multiple of four).
        depth: <K>·M, <K>·O, and B·P times the steps of a launch.
    """

    kernel: str
    dtype: mx.Dtype
    rows: int
    columns: int
    depth: int

    def __str__(self) -> str:
        sizes = f"{self.rows}x{self.columns}x{self.depth}"
        return f"{self.kernel} {dtype_name(self.dtype)} {sizes}"


def path() -> Path:
    """Where the winners are stored."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return to_path("tuning", ENVIRONMENT_VARIABLE, named)
    return cache_folder() / "tuning.json"


def device() -> str:
    """Name of the default device."""
    facts = mx.device_info(mx.default_device())
    return f"{facts.get('device_name', 'unknown')} ({facts.get('architecture', 'unknown')})"


def architecture() -> str:
    """The default device's architecture in its maker's words; empty where MLX has none."""
    return str(mx.device_info().get("architecture", ""))


def apple_generation() -> int | None:
    """The default device's generation among Apple's GPUs; ``None`` where its name has none.

    A virtual machine's GPU has a name of its own.
    """
    found = re.match(r"applegpu_g(\d+)", architecture())
    return None if found is None else int(found[1])


def tf32_is_on() -> bool:
    """Whether MLX may multiply float32 matrices as TF32 where a device can, as is its default."""
    value = os.environ.get(_TF32_VARIABLE, "1")
    number = re.match(r"\s*[+-]?\d+", value)  # what no number begins is 0 to MLX
    return number is not None and int(number[0]) != 0


def products_have_units(dtype: mx.Dtype) -> bool:
    """Whether MLX's matrix products run on units of the default device that kernels do not reach.

    CUDA has no 8x8 matrices: the kernels' are made of shuffles and fused multiply-adds, three
    instructions where cuBLAS needs less than one. On Apple's GPUs it is as MLX decides it: their
    units take float32 as TF32 only.
    """
    if mx.default_device().type != mx.gpu:
        return False
    if mx.cuda.is_available():
        return True
    if dtype == mx.float32 and not tf32_is_on():
        return False
    first = _FIRST_SMALL_WITH_UNITS if architecture().endswith("p") else _FIRST_WITH_UNITS
    return (apple_generation() or 0) >= first and _macos() >= _MACOS


def _macos() -> tuple[int, ...]:
    """The version of macOS; nothing elsewhere."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", platform.mac_ver()[0]))
    # What was built before macOS 26 is told 16.
    return (26, *numbers[1:]) if numbers[:1] == (16,) else numbers


def _stored_under() -> str:
    return device() if tf32_is_on() else f"{device()}, {_TF32_VARIABLE}=0"


def _read(file: Path) -> dict[str, dict[str, dict | None]]:
    try:
        stored = read_json(file, "tuning")
        valid = isinstance(stored, dict) and all(isinstance(v, dict) for v in stored.values())
        require(valid, "tuning", str(file), "an object of objects", stored)
        return stored
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(
            f"[tuning] {str(file)!r} must be what scripts/tune.py wrote but {error}; remove it or "
            f"name another with {ENVIRONMENT_VARIABLE}"
        ) from error


@functools.cache
def _winners(file: Path, device: str) -> dict[str, Tile | None]:
    stored = _read(file).get(device, {})
    try:
        return {
            product: sizes
            if sizes is None
            else Tile(**{**sizes, "simdgroups": tuple(sizes["simdgroups"])})
            for product, sizes in stored.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"[tuning] {str(file)!r} must hold tiles but {error!r}; remove it or name another with "
            f"{ENVIRONMENT_VARIABLE}"
        ) from error


#: A tile, MLX's own product, or one of the two by the kernel's name.
Choice = Tile | None | Mapping[str, Tile | None]

#: In a tuple, since ``None`` is a choice.
_forced: contextvars.ContextVar[tuple[Choice] | None] = contextvars.ContextVar(
    "forced", default=None
)


@contextlib.contextmanager
def forced(choice: Choice) -> Iterator[None]:
    """Have :func:`select` answer ``choice`` inside."""
    token = _forced.set((choice,))
    try:
        yield
    finally:
        _forced.reset(token)


def select(product: Product) -> Tile | None:
    """The measured winner, else the device's default; ``None`` means MLX's own product.

    Raises:
        ValueError: The file of winners cannot be read.
    """
    if (trial := _forced.get()) is not None:
        (choice,) = trial
        return choice[product.kernel] if isinstance(choice, Mapping) else choice
    # Three questions a time step: what the answer depends on is quicker to find than the answer.
    names = (ENVIRONMENT_VARIABLE, "XDG_CACHE_HOME", "HOME", _TF32_VARIABLE)
    variables = tuple(map(os.environ.get, names))
    return _choice(product, variables, mx.default_device().type)


@functools.lru_cache(maxsize=4096)
def _choice(product: Product, variables: tuple, device_type: mx.DeviceType) -> Tile | None:
    winners = _winners(path(), _stored_under())
    if str(product) in winners:
        return winners[str(product)]
    if products_have_units(product.dtype):
        return None
    return choose(product.rows, product.columns)


def store(winners: dict[Product, Tile | None], file: Path | None = None) -> Path:
    """Add winners of the default device to :func:`path`, or another file, in one step; its path."""
    file = file or path()
    stored = _read(file)
    stored.setdefault(_stored_under(), {}).update(
        {
            str(product): None if tile is None else dataclasses.asdict(tile)
            for product, tile in winners.items()
        }
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(stored, indent=2))
    _winners.cache_clear()
    _choice.cache_clear()
    return file

"""Arrays by name in safetensors files, and whether two sets of arrays are alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path

from mlx_tlstm.checks import dtype_name, require
from mlx_tlstm.files import naming


def save_arrays(
    path: Path, arrays: Mapping[str, mx.array], header: Mapping[str, str] | None = None
) -> None:
    """Write arrays by name to a safetensors file, and strings by name to its header.

    Raises:
        OSError: The file cannot be written, as when the disk is full.
    """
    # Given a path, MLX reports a full disk as a RuntimeError without a reason.
    with naming(path), path.open("wb") as file:
        mx.save_safetensors(file, dict(arrays), header and dict(header))


def load_arrays(path: Path, owner: str) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Read arrays by name from a safetensors file, and the strings of its header.

    Raises:
        ValueError: The file is damaged, or no safetensors file; the message begins with ``owner``.
    """
    try:
        # MLX takes no path that is not UTF-8.
        with path.open("rb") as file:
            arrays, header = mx.load(file, format="safetensors", return_metadata=True)
            mx.eval(arrays)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"[{owner}] '{path}' must be a safetensors file but {reason}") from error
    return arrays, header


def filled(tree: Any, arrays: Mapping[str, mx.array]) -> Any:
    """A tree of parameters like ``tree`` that holds these arrays, by ``tree_flatten``'s names.

    MLX's ``tree_unflatten`` leaves out what holds no arrays, and takes keys that are digits for the
    indices of a list.
    """
    return tree_map_with_path(lambda name, _: arrays[name], tree)


def require_like(
    owner: str,
    source: str,
    found: Mapping[str, mx.array],
    expected: Mapping[str, mx.array],
    authority: str,
) -> None:
    """Raise ``ValueError`` unless two sets of arrays agree in names, shapes and types.

    Args:
        owner: Opens the message.
        source: Where ``found`` was read, for the message.
        found: Arrays by name.
        expected: What they should look like.
        authority: What says so, for the message.
    """
    for name in sorted(found.keys() | expected.keys()):
        wanted, came = (_describe(arrays.get(name)) for arrays in (expected, found))
        argument = f"{source}: {name}"
        require(wanted == came, owner, argument, f"{wanted}, as {authority} says,", came)


def _describe(array: mx.array | None) -> str:
    if array is None:
        return "absent"
    return f"{dtype_name(array.dtype)} {list(array.shape)}"

"""Calls a compiled kernel: the C interface of native/runtime/launch.cpp."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metal_on_cpu.errors import MslError
from metal_on_cpu.source import Buffer
from metal_on_cpu.symbols import symbolize

#: Bytes of each thread's stack. Instrumented code is not optimised as much.
_STACK = {"fast": 128 * 1024, "san": 256 * 1024}
#: Metal's limit on the buffers of a kernel; the runtime's tables have one entry more.
MAX_BUFFERS = 31

# BufferFlags in native/runtime/state.h
_INPUT, _OUTPUT, _INITIALISED = 1, 2, 4


class BoundArray(NamedTuple):
    """An array bound to one buffer of the kernel."""

    name: str
    array: np.ndarray
    flags: int


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_ulong),
        ("element", ctypes.c_uint),
        ("flags", ctypes.c_uint),
    )


class _Stats(ctypes.Structure):
    _fields_ = (
        ("threads", ctypes.c_ulong),
        ("threadgroup_barriers", ctypes.c_ulong),
        ("simdgroup_ops", ctypes.c_ulong),
        ("mma", ctypes.c_ulong),
        ("switches", ctypes.c_ulong),
        ("threadgroup_bytes", ctypes.c_ulong),
        ("loads", ctypes.c_ulong * MAX_BUFFERS),
        ("stores", ctypes.c_ulong * MAX_BUFFERS),
    )


def bind(
    buffers: Sequence[Buffer],
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    initialised: bool,
) -> list[BoundArray]:
    """The arrays for the kernel's buffers.

    Args:
        initialised: the outputs have values that the kernel may read.
    """
    output_flags = _OUTPUT | _INITIALISED if initialised else _OUTPUT
    bound = []
    for buffer in buffers:
        if buffer.role == "output":
            bound.append(BoundArray(buffer.name, outputs[buffer.name], output_flags))
        else:
            value = _INPUT_VALUES[buffer.role](inputs[buffer.owner])
            bound.append(BoundArray(buffer.name, value, _INPUT))
    return bound


#: What is bound to a buffer of each role, made from the input that it belongs to.
_INPUT_VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "input": lambda array: array,
    "shape": lambda array: np.array(array.shape, np.int32),
    "strides": lambda array: np.array([s // array.itemsize for s in array.strides], np.int64),
    "ndim": lambda array: np.array([array.ndim], np.int32),
}


@functools.cache
def _load(library: Path) -> ctypes.CDLL:
    # The library leaves the C and maths functions to what the process has loaded.
    ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)
    loaded = ctypes.CDLL(str(library))
    loaded.msl_launch.argtypes = [
        ctypes.c_void_p,  # buffers
        ctypes.c_void_p,  # names
        ctypes.c_int,
        ctypes.c_void_p,  # grid
        ctypes.c_void_p,  # threadgroup
        ctypes.c_int,  # order
        ctypes.c_ulong,  # seed
        ctypes.c_int,  # sanitize
        ctypes.c_ulong,  # stack
        ctypes.c_char_p,  # error
        ctypes.c_ulong,
        ctypes.c_void_p,  # stats
    ]
    return loaded


def launch(
    library: Path,
    arrays: Sequence[BoundArray],
    grid: Sequence[int],
    threadgroup: Sequence[int],
    mode: str,
    order: int,
    seed: int,
) -> dict:
    """Runs the kernel over the grid, writes the output arrays and returns what was counted.

    Raises:
        MslError: if the kernel breaks a rule; the outputs are then left as they were.
    """
    buffers = (_Buffer * len(arrays))(
        *(_Buffer(a.ctypes.data, a.nbytes, a.itemsize, flags) for _, a, flags in arrays)
    )
    names = (ctypes.c_char_p * len(arrays))(*(name.encode() for name, _, _ in arrays))
    error = ctypes.create_string_buffer(2048)
    counted = _Stats()
    failed = _load(library).msl_launch(
        buffers,
        names,
        len(arrays),
        (ctypes.c_uint * 3)(*grid),
        (ctypes.c_uint * 3)(*threadgroup),
        order,
        seed,
        mode == "san",
        _STACK[mode],
        error,
        len(error),
        ctypes.byref(counted),
    )
    if failed:
        raise MslError(symbolize(library, error.value.decode()))
    fields = [name for name, _ in _Stats._fields_[:-2]]
    stats: dict = {field: getattr(counted, field) for field in fields}
    if mode == "san":
        for field in ("loads", "stores"):
            counts = getattr(counted, field)
            stats[field] = {bound.name: counts[i] for i, bound in enumerate(arrays)}
    return stats

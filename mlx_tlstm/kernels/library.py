"""The kernel sources and the kernel objects made from them, each built once.

The sources lie in the repository's ``metal`` folder, which a wheel carries inside the package.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import cuda

#: What an input stands for that a variant of a kernel does not read.
ABSENT = (1,)

_PACKAGE = Path(__file__).resolve().parent.parent
_HEADER = "tlstm.h"
_INCLUDES = "#include <metal_simdgroup_matrix>\n"
_CUDA_PRELUDE = "cuda.h"


@functools.cache
def source(file_name: str) -> str:
    """Text of a file of the ``metal`` folder: the package's in a wheel, else the checkout's."""
    for folder in (_PACKAGE / "metal", _PACKAGE.parent / "metal"):
        path = folder / file_name
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"the kernel source {file_name!r} is missing from the installation")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel; ``metal/<name>.metal`` is its body, ``metal/tlstm.h`` its header.

    Args:
        name: Name of the source file and of the kernel.
        inputs: Names of the input buffers, in order.
        outputs: Names of the output buffers.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        KERNELS[self.name] = self

    def __call__(
        self,
        inputs: Sequence[mx.array],
        *,
        template: dict[str, Any],
        groups: tuple[int, int, int],
        threads: int,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        """Launch ``groups`` threadgroups of ``threads`` threads; the outputs' shapes and types."""
        return _built(self)(
            inputs=list(inputs),
            template=list(template.items()),
            grid=(groups[0] * threads, groups[1], groups[2]),
            threadgroup=(threads, 1, 1),
            output_shapes=list(shapes),
            output_dtypes=list(dtypes),
        )


#: Every kernel by name.
KERNELS: dict[str, Kernel] = {}


@functools.cache
def _built(kernel: Kernel) -> Any:
    names = {"input_names": list(kernel.inputs), "output_names": list(kernel.outputs)}
    body, header = source(f"{kernel.name}.metal"), source(_HEADER)
    if mx.cuda.is_available():
        return mx.fast.cuda_kernel(
            name=kernel.name,
            source=cuda.cuda_body(body),
            header=cuda.cuda_header(source(_CUDA_PRELUDE), header),
            **names,
        )
    return mx.fast.metal_kernel(name=kernel.name, source=body, header=_INCLUDES + header, **names)


def texts() -> dict[str, str]:
    """Every text that decides what the kernels compute, by file: sources, headers, launching."""
    names = [f"{name}.metal" for name in sorted(KERNELS)]
    launching = sorted(Path(__file__).parent.glob("*.py"))
    launching.append(_PACKAGE / "recurrence" / "transition.py")
    return {name: source(name) for name in (_HEADER, _CUDA_PRELUDE, *names)} | {
        path.name: path.read_text(encoding="utf-8") for path in launching
    }


def forget_built_kernels() -> None:
    """Build every kernel anew at its next launch, as after a change of ``mx.fast``."""
    _built.cache_clear()


def geometry_template(geometry: Geometry) -> dict[str, int]:
    """Template arguments P0 … K2 of :file:`tlstm.h`'s Geometry."""
    missing = 3 - geometry.axes
    sizes = (1,) * missing + geometry.tensor_size
    taps = (1,) * missing + geometry.kernel_size
    names = ("P0", "P1", "P2", "K0", "K1", "K2")
    return dict(zip(names, sizes + taps, strict=True))


def absent() -> mx.array:
    """Stands in for an input that a variant of a kernel does not read."""
    return mx.zeros(ABSENT)

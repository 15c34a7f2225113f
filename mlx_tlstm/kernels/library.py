"""The kernel sources and the kernel objects made from them, each built once.

The sources lie in the repository's ``metal`` folder, which a wheel carries inside the package. MLX
takes a header and a body, and goes through the whole text at each launch: here the files that a
body includes become its header, and comments and indentation go.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import cuda

#: Elements of a row of channels that the convolutions' kernels read at once.
PACK = 4
#: Threads of a threadgroup where they share nothing; ``stack.metal`` counts on that number.
THREADS = 128
#: Elements from which on MLX passes an array in Metal's device address space. Smaller ones are
#: constants there, which makes other text of a kernel, and whose offsets have to be multiples of 4
#: bytes: a step of three float16 channels is none.
SMALLEST = 8

_PACKAGE = Path(__file__).resolve().parent.parent
_INCLUDE = re.compile(r'^#include "(\w+\.h)"\n', re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_BLANK = re.compile(r"^[ \t]+|[ \t]+$|^[ \t]*\n", re.MULTILINE)


@functools.cache
def source(file_name: str) -> str:
    """Text of a file of the ``metal`` folder: the package's in a wheel, else the checkout's."""
    for folder in (_PACKAGE / "metal", _PACKAGE.parent / "metal"):
        path = folder / file_name
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"the kernel source {file_name!r} is missing from the installation")


def text(kernel_name: str) -> tuple[str, str]:
    """Header and body of a kernel, for Metal; MLX writes a signature between the two."""
    name = f"{kernel_name}.metal"
    body = source(name)
    return _included(body, []) + _named(f"{name} signature", ""), _named(name, _own(body))


def cuda_text(kernel_name: str) -> tuple[str, str]:
    """The same for CUDA."""
    header, body = text(kernel_name)
    prelude = [_named(name, source(name)) for name in cuda.preludes(header + body)]
    return cuda.cuda_header("".join(prelude), header), cuda.cuda_body(body)


def _included(text: str, seen: list[str]) -> str:
    """The files that a text includes, each once, what they include themselves before them."""
    files = []
    for name in _INCLUDE.findall(text):
        if name not in seen:
            seen.append(name)
            file = source(name)
            files.append(_included(file, seen) + _named(name, _own(file)))
    return "".join(files)


def _own(text: str) -> str:
    """A file's text without the lines that include others."""
    return _INCLUDE.sub("", text)


def _named(name: str, text: str) -> str:
    """What MLX is handed of a file, and its name, by which a compiler says where an error is.

    Else it would name MLX's own header, which MLX puts in front. Lines count without comments.
    """
    return f'#line 1 "mlx_tlstm/{name}"\n{_stripped(text)}'


def _stripped(text: str) -> str:
    """Without comments, indentation and blank lines."""
    text = _COMMENT.sub("", text)
    while (shorter := _BLANK.sub("", text)) != text:
        text = shorter
    return text


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel; ``metal/<name>.metal`` is its body, which includes its headers.

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
    on_cuda = mx.cuda.is_available()
    header, body = cuda_text(kernel.name) if on_cuda else text(kernel.name)
    make = mx.fast.cuda_kernel if on_cuda else mx.fast.metal_kernel
    return make(name=kernel.name, source=body, header=header, **names)


def texts() -> dict[str, str]:
    """Every text that decides what the kernels compute, by file: sources, headers, launching."""
    folders = (Path(__file__).parent, _PACKAGE / "recurrence")
    launching = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    launching += [_PACKAGE / "geometry.py", _PACKAGE / "ops" / "convolution.py"]
    texts = {name: "".join(text(name)) for name in sorted(KERNELS)}
    texts |= {name: source(name) for name in cuda.PRELUDES.values()}
    return texts | {
        str(path.relative_to(_PACKAGE)): path.read_text(encoding="utf-8") for path in launching
    }


def forget_built_kernels() -> None:
    """Build every kernel anew at its next launch, as after a change of ``mx.fast``."""
    _built.cache_clear()


def geometry_template(geometry: Geometry) -> dict[str, int]:
    """Template arguments P0 … K2 of :file:`geometry.h`'s Geometry."""
    missing = 3 - geometry.axes
    sizes = (1,) * missing + geometry.tensor_size
    taps = (1,) * missing + geometry.kernel_size
    names = ("P0", "P1", "P2", "K0", "K1", "K2")
    return dict(zip(names, sizes + taps, strict=True))


@functools.cache
def _absent() -> mx.array:
    return mx.array([0.0] * SMALLEST)  # evaluated already


def given(array: mx.array | None) -> mx.array:
    """An input that may be missing, in whose place kernels find an array of one axis.

    So that what is there or not is no other variant of the kernel, to be compiled.
    """
    return _absent() if array is None else array

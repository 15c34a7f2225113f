"""The text that ``mx.fast.metal_kernel`` generates and compiles, and the buffers it binds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from metal_on_cpu.dtypes import MSL_TYPES, dtype_name

#: An input of fewer elements arrives as ``constant``, others as ``device``.
SMALL = 8

#: The thread attributes that MLX adds to the signature where ``source`` names them.
ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}

Template = Sequence[tuple[str, Any]]


class Spec:
    """Shape and element type of an input: all of it that the generated source depends on."""

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype_name(dtype)
        self.size = math.prod(self.shape)
        self.ndim = len(self.shape)

    @classmethod
    def of(cls, array: Any) -> Spec:
        """The spec of an array, or the spec itself."""
        return array if isinstance(array, Spec) else cls(array.shape, array.dtype)

    @property
    def key(self) -> tuple[str, int, bool]:
        """Equal for inputs that share one generated source."""
        return self.dtype, self.ndim, self.size < SMALL


@dataclass(frozen=True)
class Buffer:
    """One buffer argument of the kernel, in the order of MLX's ``[[buffer(i)]]``."""

    name: str
    role: Literal["input", "shape", "strides", "ndim", "output"]
    element_type: str  # as in the signature, with const and without the address space
    address_space: Literal["device", "constant"]
    by_reference: bool
    owner: str  # the input that a shape, strides or ndim belongs to

    @property
    def parameter(self) -> str:
        """How the signature declares it."""
        const = "const " if self.role != "output" else ""
        sign = "&" if self.by_reference else "*"
        return f"{const}{self.address_space} {self.element_type}{sign} {self.name}"

    def argument(self, pointer: str) -> str:
        """The argument for it, made from an expression of type ``void*``."""
        const = "const " if self.role != "output" else ""
        dereference = "*" if self.by_reference else ""
        return f"{dereference}({const}{self.element_type}*){pointer}"


@dataclass(frozen=True)
class GeneratedSource:
    """The parts of the text that MLX compiles, after the ``utils.h`` that it puts in front."""

    header: str
    template: str  # "template <typename T, int N>\n" or nothing
    signature: str  # up to and with the opening brace
    body: str
    kernel_name: str
    template_arguments: str  # "<float, 3>" or nothing
    buffers: tuple[Buffer, ...]
    attributes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole text, as ``verbose=True`` prints it."""
        text = f"{self.header}{self.template}{self.signature}{self.body}\n}}\n"
        if self.template:
            name = self.kernel_name + self.template_arguments
            text += (
                f'\ntemplate [[host_name("{self.kernel_name}")]] [[kernel]] '
                f"decltype({name}) {name};\n"
            )
        return text


def mlx_source(
    name: str,
    input_names: Sequence[str],
    inputs: Sequence[Spec],
    output_names: Sequence[str],
    output_dtypes: Sequence[Any],
    source: str,
    header: str = "",
    template: Template = (),
) -> GeneratedSource:
    """What ``mx.fast.metal_kernel`` generates for these arguments and a call with these arrays.

    MLX looks for attributes and for ``NAME_shape``, ``NAME_strides`` and ``NAME_ndim`` by substring
    in ``source``, comments included, and not in ``header``.
    """
    output_types = [MSL_TYPES[dtype_name(dtype)] for dtype in output_dtypes]
    arguments = ", ".join(template_value(value) for _, value in template)
    kernel_name = f"custom_kernel_{name}"
    if template:
        kernel_name += "__" + arguments.replace(", ", "_")
    for spec in inputs:
        kind = "s" if spec.ndim == 0 else "c" if spec.size < SMALL else ""
        kernel_name += f"_{MSL_TYPES[spec.dtype]}{kind}"
    for output_type in output_types:
        kernel_name += f"_{output_type}"

    buffers = _input_buffers(input_names, inputs, source)
    for output_name, output_type in zip(output_names, output_types, strict=True):
        buffers.append(Buffer(output_name, "output", output_type, "device", False, output_name))
    attributes = tuple(attribute for attribute in ATTRIBUTES if attribute in source)
    parameters = [f"  {buffer.parameter} [[buffer({i})]]" for i, buffer in enumerate(buffers)]
    parameters += [f"  {ATTRIBUTES[name]} {name} [[{name}]]" for name in attributes]
    declared = ", ".join(f"{_template_kind(value)} {name}" for name, value in template)
    return GeneratedSource(
        header=header,
        template=f"template <{declared}>\n" if template else "",
        signature=f"[[kernel]] void {kernel_name}(\n" + ",\n".join(parameters) + ") {\n",
        body=source,
        kernel_name=kernel_name,
        template_arguments=f"<{arguments}>" if template else "",
        buffers=tuple(buffers),
        attributes=attributes,
    )


def _input_buffers(names: Sequence[str], inputs: Sequence[Spec], source: str) -> list[Buffer]:
    buffers = []
    for name, spec in zip(names, inputs, strict=True):
        space = "constant" if spec.size < SMALL else "device"
        msl_type = MSL_TYPES[spec.dtype]
        buffers.append(Buffer(name, "input", msl_type, space, spec.ndim == 0, name))
        if spec.ndim == 0:
            continue
        for role, element_type in (("shape", "int"), ("strides", "int64_t"), ("ndim", "int")):
            if f"{name}_{role}" in source:
                by_reference = role == "ndim"
                buffers.append(
                    Buffer(f"{name}_{role}", role, element_type, "constant", by_reference, name)
                )
    return buffers


def template_value(value: Any) -> str:
    """A template argument as MLX writes it: an integer, a truth value as 0 or 1, or a type."""
    if isinstance(value, (bool, int, np.integer, np.bool_)):
        return str(int(value))
    return MSL_TYPES[dtype_name(value)]


def _template_kind(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    return "int" if isinstance(value, (int, np.integer)) else "typename"

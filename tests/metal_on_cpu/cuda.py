"""The text that MLX's CUDA backend would compile for a kernel that ``mlx_tlstm`` translates."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_tlstm.kernels.cuda import cuda_body, cuda_header, preludes
from mlx_tlstm.kernels.library import source as kernel_source

#: Element type to its name in CUDA, as MLX's CUDA backend generates it.
CUDA_TYPES = {
    "bool": "bool",
    "uint8": "uint8_t",
    "uint16": "uint16_t",
    "uint32": "uint32_t",
    "uint64": "uint64_t",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "float16": "__half",
    "float32": "float",
    "bfloat16": "__nv_bfloat16",
}

Template = Sequence[tuple[str, bool | int | str]]


def mlx_cuda_source(
    name: str,
    inputs: Sequence[tuple[str, str, int]],
    outputs: Sequence[tuple[str, str]],
    source: str,
    header: str = "",
    template: Template = (),
) -> tuple[str, str]:
    """The text that MLX's CUDA backend compiles for the translated kernel (build_kernel in MLX's
    backend/cuda/custom_kernel.cpp), and the name of its ``__global__`` function.

    Args:
        inputs: name, element type and number of axes of each.
        outputs: name and element type of each.
        template: integers, truth values, and names of element types.
    """
    body = cuda_body(source)
    prelude = "".join(map(kernel_source, preludes(header + source)))
    parameters = []
    for input_name, dtype, ndim in inputs:
        parameters.append(f"    const {CUDA_TYPES[dtype]}* {input_name}")
        if ndim:
            parameters += [
                f"    const __grid_constant__ {kind} {input_name}_{suffix}"
                for kind, suffix in (("Shape", "shape"), ("Strides", "strides"), ("int", "ndim"))
                if f"{input_name}_{suffix}" in body
            ]
    parameters += [f"    {CUDA_TYPES[dtype]}* {output_name}" for output_name, dtype in outputs]
    kernel_name = "custom_kernel_" + name + "".join(f"_{_name_part(v)}" for _, v in template)
    constants = "".join(f"  {_constant(n, v)}\n" for n, v in template)
    text = (
        '\n#include "mlx/backend/cuda/device/utils.cuh"\n\n#include <cooperative_groups.h>\n\n'
        + cuda_header(prelude, header)
        + "namespace mlx::core::cu {\n\nnamespace cg = cooperative_groups;\n\n"
        + f"__global__ void {kernel_name}(\n"
        + ",\n".join(parameters)
        + f") {{\n{constants}\n{body}\n}}\n\n}} // namespace mlx::core::cu\n"
    )
    return text, kernel_name


def _name_part(value: bool | int | str) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, str):
        return {"float16": "float16_t", "bfloat16": "bfloat16_t"}.get(value, CUDA_TYPES[value])
    return str(value)


def _constant(name: str, value: bool | int | str) -> str:
    if isinstance(value, bool):
        return f"constexpr bool {name} = {str(value).lower()};"
    if isinstance(value, str):
        return f"using {name} = {CUDA_TYPES[value]};"
    return f"constexpr int {name} = {value};"

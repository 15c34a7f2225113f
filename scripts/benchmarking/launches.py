"""Which kernels a layer launches, found without a GPU: they are recorded and not run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

import mlx_tlstm
from benchmarking.sizes import INPUT_SIZE, Size
from mlx_tlstm.kernels import dispatch, library, proof
from mlx_tlstm.recurrence import loop
from mlx_tlstm.recurrence.graphs import VIEWS, Node, nodes


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        name: The kernel's.
        inputs: Name, type and number of axes of each input.
        outputs: Name and type of each output.
        template: Template arguments.
        threadgroup: Threads of a threadgroup on each axis.
    """

    name: str
    inputs: tuple[tuple[str, mx.Dtype, int], ...]
    outputs: tuple[tuple[str, mx.Dtype], ...]
    template: tuple[tuple[str, Any], ...]
    threadgroup: tuple[int, int, int]


@contextlib.contextmanager
def _kernels_without_device() -> Iterator[None]:
    """Layers run kernels as if a GPU had proven them; what is built here does not outlast it."""
    library.forget_built_kernels()
    try:
        with (
            mock.patch.object(dispatch, "kernel_backend", return_value=("metal", "")),
            mock.patch.object(proof, "proven", lambda configuration: configuration.kernels),
        ):
            yield
    finally:
        library.forget_built_kernels()


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Layers run kernels, which compute zeros and are entered in the list."""
    launches: list[Launch] = []

    def metal_kernel(*, name: str, input_names: list, output_names: list, **_: Any) -> Any:
        def launch(*, inputs, template, grid, threadgroup, output_shapes, output_dtypes):
            described = zip(input_names, inputs, strict=True)
            launches.append(
                Launch(
                    name,
                    tuple((one, array.dtype, array.ndim) for one, array in described),
                    tuple(zip(output_names, output_dtypes, strict=True)),
                    tuple(template),
                    tuple(threadgroup),
                )
            )
            return [mx.zeros(*one) for one in zip(output_shapes, output_dtypes, strict=True)]

        return launch

    with _kernels_without_device(), mock.patch.object(mx.fast, "metal_kernel", metal_kernel):
        yield launches


def signature(launch: Launch, types: Mapping[mx.Dtype, str], body: str) -> tuple[str, str]:
    """Parameters and constants of a kernel of this ``body``, as MLX's CUDA back end writes them."""
    parameters, constants = [], ""
    for name, dtype, _ in launch.inputs:
        parameters.append(f"const {types[dtype]}* {name}")
        for kind, what in (("Shape", "shape"), ("int", "ndim")):
            if f"{name}_{what}" in body:
                parameters.append(f"const __grid_constant__ {kind} {name}_{what}")
    parameters += [f"{types[dtype]}* {name}" for name, dtype in launch.outputs]
    for name, value in launch.template:
        if isinstance(value, mx.Dtype):
            constants += f"using {name} = {types[value]};\n"
        else:
            kind = "bool" if isinstance(value, bool) else "int"
            constants += f"constexpr {kind} {name} = {str(value).lower()};\n"
    return ", ".join(parameters), constants


def networks(size: Size) -> tuple[Any, ...]:
    """Of one size a tLSTM of each kind, and a tRNN."""
    arguments = (INPUT_SIZE, size.hidden_size, size.tensor_size)
    norms = (mlx_tlstm.TLSTM(*arguments, norm=norm) for norm in (None, "channel", "layer"))
    return (*norms, mlx_tlstm.TRNN(*arguments))


def of_a_pass(layer: Any, batch_size: int, length: int) -> list[Launch]:
    """The launches of a forward and backward pass; nothing is computed."""
    cell = layer.cell
    x = mx.zeros((batch_size, length, cell.input_size))

    def loss(parameters: Any, x: mx.array) -> mx.array:
        layer.update(parameters)
        return layer(x)[0].sum()

    parameters = layer.parameters()
    with recorded() as launches:
        mx.grad(loss, argnums=(0, 1))(parameters, x)
    layer.update(parameters)
    return launches


def of_a_step(layer: Any, batch_size: int) -> dict[str, float]:
    """Launches of a time step, forward and backward, by kernel or operation; nothing is computed.

    Counted in the graph that MLX exports, over 128 steps, where all but a view is a launch. On a
    GPU one may be two: a matrix product whose sum is split, a reduction of many rows.
    """
    counts = [_exported(layer, batch_size, steps) for steps in (16, 144)]
    counts[1].subtract(counts[0])
    return {name: count / 128 for name, count in sorted(counts[1].items()) if count > 0}


def _exported(layer: Any, batch_size: int, length: int) -> Counter[str]:
    names, parameters = zip(*tree_flatten(layer.parameters()), strict=True)

    def loss(x: mx.array, *arrays: mx.array) -> mx.array:
        layer.update(tree_unflatten(list(zip(names, arrays, strict=True))))
        return layer(x)[0].sum()

    gradient = mx.compile(mx.grad(loss, argnums=list(range(1, 1 + len(names)))))
    x = mx.zeros((batch_size, length, layer.cell.input_size))
    with (
        _kernels_without_device(),
        # MLX exports neither; the first is a launch, the second none.
        mock.patch.object(mx, "contiguous", mx.abs),
        mock.patch.object(loop, "after", mx.depends),
    ):
        graph = nodes(gradient, x, *parameters)
    layer.update(tree_unflatten(list(zip(names, parameters, strict=True))))
    return Counter(_name(node) for node in graph if node["type"] == "primitive" and _name(node))


def _name(node: Node) -> str:
    """The kernel's or the operation's; none for a view."""
    name = node["name"]
    if name == "CustomKernel":
        name = node["arguments"][0].removeprefix("custom_kernel_").partition("__")[0]
    return "" if name in VIEWS or name == "Depends" else name

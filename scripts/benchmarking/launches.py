"""Which kernels a layer launches, found without a GPU: they are recorded and not run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import mlx.core as mx

from mlx_tlstm.kernels import dispatch, library, proof


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        name: The kernel's.
        inputs: Name, type and number of axes of each input.
        outputs: Name and type of each output.
        template: Template arguments.
        grid: Threads on each axis.
        threadgroup: Threads of a threadgroup on each axis.
    """

    name: str
    inputs: tuple[tuple[str, mx.Dtype, int], ...]
    outputs: tuple[tuple[str, mx.Dtype], ...]
    template: tuple[tuple[str, Any], ...]
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]


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
                    tuple(grid),
                    tuple(threadgroup),
                )
            )
            return [mx.zeros(*one) for one in zip(output_shapes, output_dtypes, strict=True)]

        return launch

    library.forget_built_kernels()
    with (
        mock.patch.object(mx.fast, "metal_kernel", metal_kernel),
        mock.patch.object(dispatch, "kernel_backend", return_value=("metal", "")),
        mock.patch.object(proof, "proven", lambda configuration: configuration.kernels),
    ):
        yield launches
    library.forget_built_kernels()


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

"""Puts kernels that run on the CPU in the place of ``mx.fast.metal_kernel``.

A library written for Metal then runs its real Python path on MLX's CPU backend::

    with standin.installed(mode="san") as calls:
        loss, gradients = nn.value_and_grad(model, loss_function)(model, batch)
    launches = [call.kernel for call in calls]

It works under ``mx.grad`` and ``mx.vjp`` of an ``mx.custom_function``, where MLX lets arrays be
evaluated. Kernel objects that were made before it was installed stay MLX's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from metal_on_cpu.dtypes import bfloat16, dtype_name
from metal_on_cpu.kernel import Kernel
from metal_on_cpu.source import SMALL

_NO_TRANSFORMATION = "not allowed"


@dataclass(frozen=True)
class Call:
    """One launch of a kernel."""

    kernel: str
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    template: dict[str, Any]  # types by name
    output_shapes: list[tuple[int, ...]]
    stats: dict = field(repr=False)  # see Kernel.__call__


@contextlib.contextmanager
def installed(mode: str = "san", check: bool = True, order: int = 0) -> Iterator[list[Call]]:
    """A context with the stand-in installed; gives the list that records every call. They nest.

    Args:
        mode, order: as of ``Kernel.__call__``.
        check: type-check every variant of a kernel before its first run.
    """
    before = mx.fast.metal_kernel
    calls: list[Call] = []

    def metal_kernel(*args: Any, **kwargs: Any) -> StandinKernel:
        return StandinKernel(Kernel(*args, **kwargs), calls, mode, check, order)

    mx.fast.metal_kernel = metal_kernel
    try:
        yield calls
    finally:
        mx.fast.metal_kernel = before


class StandinKernel:
    """What the stand-in for ``mx.fast.metal_kernel`` returns; called as MLX's own."""

    def __init__(
        self, kernel: Kernel, calls: list[Call], mode: str, check: bool, order: int
    ) -> None:
        self._kernel = kernel
        self._calls = calls
        self._options = {"mode": mode, "order": order}
        self._check = check
        self._checked: set[tuple] = set()

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[mx.array]:
        """Runs the kernel at once, not when its outputs are evaluated.

        Raises:
            MslError: if the kernel is wrong.
            RuntimeError: inside ``mx.compile`` or ``mx.vmap``, where nothing can be evaluated.
        """
        try:
            arrays = [_to_numpy(array) for array in inputs]
        except ValueError as error:
            if _NO_TRANSFORMATION not in str(error):
                raise
            raise RuntimeError(
                f"{self._kernel.name}: the stand-in for mx.fast.metal_kernel evaluates its inputs, "
                "which mx.compile and mx.vmap do not allow"
            ) from error
        arguments = [(name, _plain(value)) for name, value in template or ()]
        dtypes = [dtype_name(dtype) for dtype in output_dtypes]
        if self._check:
            self._check_once(arrays, arguments, dtypes)
        stats: dict = {}
        outputs = self._kernel(
            inputs=arrays,
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=output_shapes,
            output_dtypes=dtypes,
            template=arguments,
            init_value=init_value,
            verbose=verbose,
            stats=stats,
            **self._options,
        )
        shapes = [tuple(shape) for shape in output_shapes]
        self._calls.append(
            Call(self._kernel.name, tuple(grid), tuple(threadgroup), dict(arguments), shapes, stats)
        )
        return [_to_mlx(output) for output in outputs]

    def _check_once(self, arrays: list, template: list, dtypes: list[str]) -> None:
        variant = (
            tuple((array.dtype.name, array.ndim, array.size < SMALL) for array in arrays),
            tuple(template),
            tuple(dtypes),
        )
        if variant not in self._checked:
            self._kernel.check(arrays, template, dtypes, small_inputs=False)
            self._checked.add(variant)


def _plain(value: Any) -> Any:
    return dtype_name(value) if isinstance(value, mx.Dtype) else value


def _to_numpy(value: Any) -> np.ndarray:
    array = value if isinstance(value, mx.array) else mx.array(value)
    if array.dtype == mx.bfloat16:
        return np.array(array.view(mx.uint16)).view(bfloat16)
    return np.array(array)


def _to_mlx(array: np.ndarray) -> mx.array:
    if array.dtype == bfloat16:
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array)

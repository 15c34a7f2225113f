"""The sizes that are measured, the types, and how exact a GPU's products are."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

import click
import mlx.core as mx

from mlx_tlstm.checking.chains import Problem
from mlx_tlstm.checking.timing import per_timestep_example
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels.tuning import products_have_units, tf32_is_on

KERNEL_SIZE = 3
INPUT_SIZE = 65  # symbols of the memorization task


@dataclasses.dataclass(frozen=True)
class Size:
    """P of each axis, M, B and T."""

    tensor_size: tuple[int, ...]
    hidden_size: int
    batch_size: int
    length: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read ``4x4,M=100,B=15,T=42``.

        Raises:
            ValueError: The text has another form, or a number is 0.
        """
        match = re.fullmatch(r"(\d+(?:x\d+)*),M=(\d+),B=(\d+),T=(\d+)", text.replace(" ", ""))
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        if match is None or 0 in numbers:
            raise ValueError(f"a size reads like 4x4,M=100,B=15,T=42 but got {text!r}")
        return cls(tuple(numbers[:-3]), *numbers[-3:])

    def __str__(self) -> str:
        locations = "x".join(map(str, self.tensor_size))
        return f"{locations}, M={self.hidden_size}, B={self.batch_size}, T={self.length}"

    def unit(self, milliseconds: float) -> float:
        """Milliseconds of a pass as milliseconds per timestep of one example."""
        return per_timestep_example(milliseconds, self.length, self.batch_size)

    def settings(self) -> dict[str, Any]:
        """Arguments of a tLSTM with memory convolution and channel normalisation."""
        return {
            "input_size": INPUT_SIZE,
            "hidden_size": self.hidden_size,
            "tensor_size": self.tensor_size,
            "kernel_size": KERNEL_SIZE,
            "memory_convolution": True,
            "norm": "channel",
        }

    def problem(self, dtype: mx.Dtype, **variant: Any) -> Problem:
        """What the kernels of a time step of such a layer are given."""
        geometry = Geometry(self.tensor_size, (KERNEL_SIZE,) * len(self.tensor_size))
        return Problem(geometry, self.hidden_size, self.batch_size, dtype, **variant)


class SizeType(click.ParamType):
    """A size on the command line."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> Size:
        try:
            return value if isinstance(value, Size) else Size.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


#: 3D with L = 10, 7, 4 and 5, and 2D with L = 1 and 10: at K = 3 the tensor size is L.
LAYER_SIZES = (
    Size((10, 10), 100, 15, 42),
    Size((7, 7), 400, 15, 49),
    Size((4, 4), 522, 100, 50),
    Size((5, 5), 100, 50, 784),
    Size((1,), 100, 15, 200),
    Size((10,), 100, 15, 200),
)

#: 2D with L = 1 to 10: whether the time grows with the depth.
DEPTH_SIZES = tuple(Size((depth,), 100, 15, 42) for depth in (1, 2, 4, 10))


def tf32() -> bool:
    """Whether MLX may multiply float32 matrices on the default device as TF32."""
    return tf32_is_on() and products_have_units(mx.float32)


def tf32_text() -> str:
    """The setting for people."""
    setting = os.environ.get("MLX_ENABLE_TF32")
    given = "MLX's default" if setting is None else f"MLX_ENABLE_TF32={setting}"
    return f"{'on' if tf32() else 'off'} ({given}, {mx.default_device().type.name})"


def unit_roundoff(dtype: mx.Dtype) -> float:
    """Relative error of one rounding of a matrix product's factors on the default device."""
    if dtype == mx.float32:
        return 2.0**-11 if tf32() else 2.0**-24
    return {mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}[dtype]

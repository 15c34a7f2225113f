"""What the measuring scripts share: sizes, types, and how exact a GPU's products are."""

from __future__ import annotations

import os
import re
from typing import Any

import click
import mlx.core as mx

from benchmarking.baselines import Size

#: 3D with L = 10, 7, 4 and 5, and 2D with L = 1 and 10: at K = 3 the tensor size is L.
LAYER_SIZES = (
    Size((10, 10), 100, 15, 42),
    Size((7, 7), 400, 15, 49),
    Size((4, 4), 522, 100, 50),
    Size((5, 5), 100, 50, 784),
    Size((1,), 100, 15, 200),
    Size((10,), 100, 15, 200),
)

#: Mean number of running processes over the last minute above which a machine is not quiet.
BUSY_LOAD = 0.5

DTYPES = {name: getattr(mx, name) for name in ("float32", "float16", "bfloat16")}

#: The first Apple GPU generation that multiplies float32 matrices as TF32 unless told not to.
_TF32_GENERATION = 17


class SizeType(click.ParamType):
    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> Size:
        try:
            return value if isinstance(value, Size) else Size.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def tf32() -> bool:
    """Whether MLX may multiply float32 matrices on the default device as TF32."""
    if mx.default_device().type != mx.gpu or os.environ.get("MLX_ENABLE_TF32", "1") == "0":
        return False
    generation = re.match(r"applegpu_g(\d+)", str(mx.device_info().get("architecture", "")))
    return mx.cuda.is_available() or (
        generation is not None and int(generation[1]) >= _TF32_GENERATION
    )


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

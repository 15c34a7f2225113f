"""Runs the convolution kernels on random arrays, beside the float64 reference."""

from __future__ import annotations

import dataclasses
import math
from contextlib import AbstractContextManager, nullcontext

import mlx.core as mx
import numpy as np
import reference
from comparison import ROUNDING, as_float64

from mlx_tlstm.checks import dtype_name
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import KernelBackend, tuning
from mlx_tlstm.kernels.tiles import Tile
from mlx_tlstm.recurrence.contract import Prepared

#: Arrays of each time step, and the parameters: float64 holding numbers of the case's type.
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes, and the tile where it is not the one that the library chooses.

    Args:
        cell: ``"tlstm"``, ``"noconv"`` (without memory convolution) or ``"trnn"``; says how many
            output channels there are, and whether the forward kernel ends in tanh.
        steps: Time steps of the weight gradient.
        product: MLX's own product takes the place of every tile.
    """

    tensor_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    hidden_size: int = 7
    batch: int = 2
    dtype: mx.Dtype = mx.float32
    tile: Tile | None = None
    cell: str = "tlstm"
    steps: int = 2
    product: bool = False

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.tensor_size, self.kernel_size)

    @property
    def channels(self) -> int:
        M = self.hidden_size
        return {"tlstm": 4 * M + self.geometry.taps, "noconv": 4 * M, "trnn": M}[self.cell]

    @property
    def tanh(self) -> bool:
        return self.cell == "trnn"

    @property
    def backend(self) -> KernelBackend:
        return KernelBackend(self.geometry, None)  # its convolutions know no memory update

    def on_tile(self) -> AbstractContextManager[object]:
        """Launches take the case's tile, if it has one."""
        forced = self.tile or self.product
        return tuning.forced(self.tile) if forced else nullcontext()

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.tensor_size))
        taps = "x".join(map(str, self.kernel_size))
        dtype = dtype_name(self.dtype)
        tile = "-tile" + "x".join(map(str, self.tile.template.values())) if self.tile else ""
        tile = "-product" if self.product else tile
        return (
            f"P{sizes}-K{taps}-M{self.hidden_size}-B{self.batch}-T{self.steps}-{self.cell}"
            f"-{dtype}{tile}"
        )


def arguments(case: Case, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    B, P, M, O, T = case.batch, case.tensor_size, case.hidden_size, case.channels, case.steps
    shapes = {
        "hidden": (T, B, *P, M),
        "projected": (T, B, M),
        "d_activation": (T, B, *P, O),
        "weight": (O, *case.kernel_size, M),
        "bias": (O,),
    }
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    arrays["weight"] /= math.sqrt(case.geometry.taps * M)
    return {name: as_float64(mx.array(array).astype(case.dtype)) for name, array in arrays.items()}


def _typed(case: Case, array: np.ndarray) -> mx.array:
    return mx.array(array.astype(np.float32)).astype(case.dtype)


def forward(case: Case, given: Arrays) -> dict[str, mx.array]:
    """What the kernel makes of the first step."""
    names = ("hidden", "projected", "weight", "bias")
    first = [given[name][0] if name in names[:2] else given[name] for name in names]
    hidden, projected, *parameters = (_typed(case, array) for array in first)
    with case.on_tile():
        activation = case.backend.convolution(
            hidden, projected, Prepared(*parameters), tanh=case.tanh
        )
    return {"activation": activation}


def input_gradient(case: Case, given: Arrays) -> dict[str, mx.array]:
    """What the kernel makes of the first step."""
    prepared = Prepared(*(_typed(case, given[name]) for name in ("weight", "bias")))
    with case.on_tile():
        d_hidden, d_projected = case.backend.convolution_gradient(
            _typed(case, given["d_activation"][0]), prepared
        )
    return {"d_hidden": d_hidden, "d_projected": d_projected}


def weight_gradient(case: Case, given: Arrays) -> dict[str, mx.array]:
    """What the kernel makes of all steps."""
    series = [
        [_typed(case, array) for array in given[name]]
        for name in ("hidden", "projected", "d_activation")
    ]
    with case.on_tile():
        d_weight, d_bias = case.backend.weight_gradient(*series)
    return {"d_weight": d_weight, "d_bias": d_bias}


def compute(case: Case, given: Arrays) -> dict[str, mx.array]:
    """What all three kernels make of the arrays."""
    return forward(case, given) | input_gradient(case, given) | weight_gradient(case, given)


def expected(case: Case, given: Arrays) -> Arrays:
    """The same from the reference."""
    spec = reference.Specification(case.tensor_size, case.kernel_size)
    parameters = {"weight": given["weight"], "bias": given["bias"]}
    gradients = {name: np.zeros_like(array) for name, array in parameters.items()}
    of_inputs = []
    for hidden, projected, d_A in zip(
        given["hidden"], given["projected"], given["d_activation"], strict=True
    ):
        H_cat = reference.concatenate(case.tensor_size, projected, hidden)
        d_H_cat = reference.convolve_hidden_backward(spec, parameters, gradients, H_cat, d_A)
        of_inputs.append(reference.concatenate_backward(case.tensor_size, d_H_cat))
    H_cat = reference.concatenate(case.tensor_size, given["projected"][0], given["hidden"][0])
    A = reference.convolve_hidden(spec, parameters, H_cat)
    d_projected, d_hidden = of_inputs[0]
    return {
        "activation": np.tanh(A) if case.tanh else A,
        "d_hidden": d_hidden,
        "d_projected": d_projected,
        "d_weight": gradients["weight"],
        "d_bias": gradients["bias"],
    }


def tolerance(case: Case) -> float:
    """Beside the rounding of a result to its type.

    Products of the inputs and their sums are rounded to float32 (6e-8), and the rounding of a sum
    grows with the root of its terms, up to 1500 here: below 3e-6. MLX's own product rounds what it
    multiplied to the case's type before it is added up.
    """
    products = case.product or (case.tile is None and tuning.products_have_units(case.dtype))
    return 3e-6 + (2 * ROUNDING[case.dtype] if products else 0)

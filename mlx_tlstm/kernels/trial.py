"""Runs a layer's kernels on random numbers, and says whether they are right on this device.

Short sequences, forward and backward, go through the kernels as a layer would launch them, and
through plain operations on the CPU. Every result and every gradient has to agree, as far as the
device's own matrix products do.

Everything here is computed from numbers of its own, so that it may happen while MLX traces a
function of the user's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_tlstm.checks import dtype_name
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import convolution, faults, tuning
from mlx_tlstm.kernels.library import SMALLEST
from mlx_tlstm.kernels.tiles import Tile
from mlx_tlstm.recurrence.contract import MemoryUpdate
from mlx_tlstm.recurrence.loop import Keep, run
from mlx_tlstm.recurrence.transition import TensorTransition

#: Steps, steps without an output, and the step of the final state, of each sequence. Together they
#: launch the kernels in every way but for counts: nine steps take two launches of the weight
#: gradient, and the gradient of the final state meets a step with an output, one without, and the
#: last one.
SEQUENCES = ((9, 2, 5), (2, 1, 1), (1, 0, 1))

#: Results may differ by so many times the change that one rounding of every input makes.
_MARGIN = 8
#: Rounding that is assumed at least, of sums in float32 on either side.
_LEAST_ROUNDING = 2.0**-21
#: Rounding that is believed at most: twice that of bfloat16, the coarsest type of a product.
_LARGEST_ROUNDING = 2.0**-7


def examples(hidden_size: int) -> int:
    """Examples of the sequences: two, or as many as a layer of ``hidden_size`` runs kernels on."""
    return max(2, -(-SMALLEST // hidden_size))


class KernelError(RuntimeError):
    """The kernels do not run right on this device."""


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What decides which kernels a layer launches.

    Args:
        plain: The step as plain operations.
        kernels: The same step as kernels.
        dtype: Type of the weights.
        recompute: Whether the backward pass computes activations anew.
        tiles: The tile of each convolution kernel by its name, ``None`` for MLX's own product.
        state: Names of the state's arrays.
        parameters: Shapes of weight and bias and, with a norm, of its gain and bias.
    """

    plain: TensorTransition
    kernels: TensorTransition
    dtype: mx.Dtype
    recompute: bool
    tiles: tuple[tuple[str, Tile | None], ...]
    state: tuple[str, ...]
    parameters: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, cell: Any, batch_size: int) -> Configuration:
        """That of a tensor cell that is run on ``batch_size`` examples."""
        O, M, dtype = cell.weight.shape[0], cell.weight.shape[-1], cell.weight.dtype
        products = convolution.products(batch_size, M, O, cell.geometry, dtype)
        tiles = tuple((product.kernel, tuning.select(product)) for product in products)
        return cls(
            cell.transition,
            cell.kernel_transition,
            dtype,
            cell.recompute,
            tiles,
            cell.state_type._fields,
            tuple(parameter.shape for parameter in cell.transition_parameters()),
        )

    @property
    def geometry(self) -> Geometry:
        return self.plain.backend.geometry

    @property
    def update(self) -> MemoryUpdate | None:
        """That of a tLSTM; ``None`` for a tRNN."""
        return self.plain.backend.update

    def variants(self) -> list[TensorTransition]:
        """The step as kernels, then with fewer threads, for a device that grants no more."""
        return [self.kernels.on(backend) for backend in self.kernels.backend.variants()]

    @property
    def hidden_size(self) -> int:
        return self.plain.hidden_size

    @property
    def names(self) -> tuple[str, ...]:
        """Of the values and gradients that are compared, in their order."""
        parameters = ("weight", "bias", "norm.gain", "norm.bias")[: len(self.parameters)]
        inputs = ("projected", *self.state, *parameters)
        return ("outputs", *self.state, *(f"gradient of {name}" for name in inputs))

    def __str__(self) -> str:
        kind = type(self.kernels).__name__.removesuffix("Transition")
        update = self.update
        options = [] if update is None or update.norm is None else [f"norm={update.norm!r}"]
        if update is not None and not update.convolve:
            options.append("memory_convolution=False")
        if self.recompute:
            options.append("recompute=True")
        geometry, dtype = self.geometry, dtype_name(self.dtype)
        sizes = f"P={geometry.tensor_size}, K={geometry.kernel_size}, M={self.hidden_size}"
        return ", ".join([f"{kind} {sizes}", dtype, *options])


@dataclasses.dataclass(frozen=True)
class Proof:
    """That kernels are right.

    Attributes:
        kernels: The step, with as many threads as the device grants.
        errors: For each result its largest relative error over the sequences, and the error that
            was allowed there.
    """

    kernels: TensorTransition
    errors: dict[str, tuple[float, float]]


def prove(configuration: Configuration, compiled: bool = False) -> Proof:
    """Run the kernels on the default device and compare them with plain operations on the CPU.

    Args:
        configuration: Which kernels.
        compiled: Run them through ``mx.compile``, which no function may do that is being traced.

    Raises:
        KernelError: A kernel does not compile, cannot be launched, or computes wrong numbers.
    """
    trial = Trial.of(configuration)
    with mx.stream(mx.cpu):
        expected = trial.results(configuration.plain, mx.float32)
    first_error: Exception | None = None
    for variant in configuration.variants():
        try:
            rounding = measured_rounding(configuration)
            with tuning.forced(dict(configuration.tiles)):
                found = trial.results(variant, configuration.dtype, compiled)
        except Exception as error:  # whatever a compiler or a driver has to say
            first_error = first_error or error
            faults.settle()
            continue
        with mx.stream(mx.cpu):
            moved = trial.moved(rounding).results(configuration.plain, mx.float32)
        return Proof(variant, _compared(configuration, found, expected, moved, rounding))
    reason = f"{type(first_error).__name__}: {faults.in_a_line(first_error)}"
    raise fault(configuration, reason) from first_error


@dataclasses.dataclass(frozen=True)
class Trial:
    """Random numbers for the sequences of a proof, in float32.

    Attributes:
        inputs: Projected inputs ``[T, B, M]``, the state's arrays, the parameters.
        cotangents: Of the outputs ``[T, B, M]`` and of the final state's arrays.
        width: Number of the state's arrays.
        recompute: Whether the backward pass computes activations anew.
    """

    inputs: tuple[np.ndarray, ...]
    cotangents: tuple[np.ndarray, ...]
    width: int
    recompute: bool

    @classmethod
    def of(cls, configuration: Configuration) -> Trial:
        # No number is taken from mx.random, which is the user's.
        normal = np.random.default_rng(0).standard_normal
        M, geometry = configuration.hidden_size, configuration.geometry
        width = len(configuration.state)
        steps = max(steps for steps, _, _ in SEQUENCES)
        B = examples(M)
        sequence, state = (steps, B, M), (B, *geometry.tensor_size, M)
        weight, *others = configuration.parameters
        parameters = [normal(weight) * (geometry.taps * M) ** -0.5]
        parameters += [0.3 * normal(shape) for shape in others]
        if len(parameters) == 4:
            parameters[2] += 1  # a norm's gain
        inputs = (normal(sequence), *(normal(state) for _ in range(width)), *parameters)
        cotangents = (normal(sequence), *(normal(state) for _ in range(width)))
        return cls(_single(inputs), _single(cotangents), width, configuration.recompute)

    def moved(self, rounding: float) -> Trial:
        """The same numbers, each moved by about ``rounding`` times itself."""
        normal = np.random.default_rng(1).standard_normal

        def move(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
            return _single([array * (1 + rounding * normal(array.shape)) for array in arrays])

        return dataclasses.replace(self, inputs=move(self.inputs), cotangents=move(self.cotangents))

    def results(
        self,
        transition: TensorTransition,
        dtype: mx.Dtype,
        compiled: bool = False,
        keep: Keep | None = None,
    ) -> list[list[np.ndarray]]:
        """Values and gradients of each of :data:`SEQUENCES`, in the order of the names.

        Args:
            transition: The step.
            dtype: Type of the weights.
            compiled: Go through ``mx.compile``, as training does.
            keep: See :func:`mlx_tlstm.recurrence.loop.run`; ``None`` for what the layer keeps.
        """
        projected, *others = self.inputs
        d_outputs, *d_state = self.cotangents
        # A memory cell is float32 whatever the weights.
        types = [dtype, *(dtype, mx.float32)[: self.width], *([dtype] * len(others))]
        keep = keep or ("states" if self.recompute else "residuals")
        found = []
        for steps, skip, final_step in SEQUENCES:

            def sequence(projected, *arrays, skip=skip, final_step=final_step):
                state, parameters = arrays[: self.width], arrays[self.width :]
                outputs, final = run(
                    transition,
                    list(parameters),
                    projected,
                    tuple(state),
                    skip=skip,
                    final_step=final_step,
                    keep=keep,
                )
                return [outputs, *final]

            def gradient(inputs, cotangents, sequence=sequence):
                return mx.vjp(sequence, inputs, cotangents)

            inputs = _arrays((projected[:steps], *others), types)
            cotangents = _arrays((d_outputs[: steps - skip], *d_state), types)
            if compiled:
                gradient = mx.compile(gradient)
            values, gradients = gradient(inputs, cotangents)
            mx.eval(values, gradients)
            found.append([to_numpy(array) for array in (*values, *gradients)])
        return found


def _single(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    return tuple(array.astype(np.float32) for array in arrays)


def _arrays(arrays: Sequence[np.ndarray], types: Sequence[mx.Dtype]) -> list[mx.array]:
    return [mx.array(array).astype(dtype) for array, dtype in zip(arrays, types, strict=False)]


def to_numpy(array: mx.array) -> np.ndarray:
    """Its numbers in float64."""
    with mx.stream(mx.cpu):
        return np.array(array.astype(mx.float32), dtype=np.float64)


def measured_rounding(configuration: Configuration) -> float:
    """Largest relative error of the default device's matrix products of the step's sizes.

    Raises:
        ArithmeticError: It is more than any type accounts for.
    """
    normal, worst = np.random.default_rng(2).standard_normal, _LEAST_ROUNDING
    O, M = configuration.parameters[0][0], configuration.hidden_size
    sizes = (examples(M), M, O, configuration.geometry, configuration.dtype)
    for product in convolution.products(*sizes, steps=1):
        factors = ((product.rows, product.depth), (product.depth, product.columns))
        left, right = _arrays(_single([normal(shape) for shape in factors]), [product.dtype] * 2)
        found, exact = to_numpy(left @ right), to_numpy(left) @ to_numpy(right)
        worst = max(worst, relative_error(found, exact))
    if not worst <= _LARGEST_ROUNDING:
        raise ArithmeticError(f"MLX's own matrix product is off by {worst:.1e} on this device")
    return worst


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of what was expected; infinite where not finite."""
    error = float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) + 1e-30))
    return error if np.isfinite(error) else np.inf


def _compared(
    configuration: Configuration,
    found: list[list[np.ndarray]],
    expected: list[list[np.ndarray]],
    moved: list[list[np.ndarray]],
    rounding: float,
) -> dict[str, tuple[float, float]]:
    """By result its error and tolerance, where it used up most of it.

    Raises:
        KernelError: One is off by more.
    """
    errors: dict[str, tuple[float, float]] = {}
    for sequence in zip(found, expected, moved, strict=True):
        for name, got, wanted, near in zip(configuration.names, *sequence, strict=True):
            tolerance = _MARGIN * (rounding + relative_error(near, wanted))
            pair = (relative_error(got, wanted), tolerance)
            errors[name] = max(errors.get(name, pair), pair, key=lambda pair: pair[0] / pair[1])
    wrong = [name for name, (error, tolerance) in errors.items() if error > tolerance]
    if wrong:
        listed = ", ".join("{} by {:.1e} (allowed {:.1e})".format(n, *errors[n]) for n in wrong)
        raise fault(configuration, f"wrong numbers, off by more than rounding: {listed}")
    return errors


def fault(
    configuration: Configuration, reason: str, found: str = "do not run right"
) -> KernelError:
    """The error that says what was ``found`` of the kernels here, and why."""
    return KernelError(
        f"[kernels] The kernels of {configuration} {found} on {tuning.device()} with MLX "
        f"{mx.__version__} ({reason}). A layer that chooses by itself runs plain operations "
        "instead, which backend='ops' or MLX_TLSTM_BACKEND=ops asks for. Please send the project "
        "the file that 'python -m mlx_tlstm.check' writes."
    )

"""Networks by name: the paper's configurations, and cells that a user adds."""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mlx import nn

from mlx_tlstm.checks import require, require_choice, require_flag, require_integer
from mlx_tlstm.layers import TLSTM, TRNN, Recurrent, StackedLSTM
from mlx_tlstm.layers.base import RecurrentLayer, require_forget_bias
from mlx_tlstm.layers.layer import Layer
from mlx_tlstm.recurrence.contract import MemoryUpdate

_OWNER = "make_layer"


@dataclasses.dataclass(frozen=True)
class LayerRequest:
    """What :func:`make_layer` is asked for; its arguments."""

    variant: str
    input_size: int
    hidden_size: int
    depth: int
    forget_bias: float
    kernel_size: int | None
    recompute: bool
    backend: str | None

    def require(self, name: str, *choices: Any) -> None:
        """Raise ``ValueError`` unless the argument ``name`` is one of those of the variant."""
        require_choice(_OWNER, f"{name} (of {self.variant})", getattr(self, name), choices)


class Variant(abc.ABC):
    """A named network, from which :func:`make_layer` builds layers.

    Attributes:
        axes: Number of tensor axes; 0 where there is no tensor.
        has_forget_gate: Whether there are forget gates, which a bias may hold open at the start.
        settings: Settings of a :class:`mlx_tlstm.config.TrainingConfig` in place of a task's, as
            far as the network's own paper names them.
    """

    axes: int
    has_forget_gate: bool
    settings: Mapping[str, Any] = MappingProxyType({})

    def is_causal(self, depth: int) -> bool:
        """Whether no output depends on a later input, as the layer says."""
        return True

    def delay(self, depth: int) -> int:
        """Time steps between an input and its output at depth L; the layer's ``delay``."""
        return 0

    @abc.abstractmethod
    def build(self, request: LayerRequest) -> Layer:
        """The layer.

        Raises:
            ValueError: An argument is out of range or does not fit the variant.
        """


@dataclasses.dataclass(frozen=True)
class TensorVariant(Variant):
    """A tensorized network.

    Args:
        kind: Layer class.
        axes: Number of tensor axes.
        kernel_size: K on every axis.
        memory_convolution: Whether the memory cell is convolved.
        norm: ``None``, ``"channel"`` or ``"layer"``.
    """

    kind: type[TLSTM] | type[TRNN]
    axes: int
    kernel_size: int
    memory_convolution: bool = False
    norm: str | None = None

    @property
    def has_forget_gate(self) -> bool:
        return self.kind is TLSTM

    def is_causal(self, depth: int) -> bool:
        return MemoryUpdate(self.memory_convolution, self.norm).is_causal(depth)

    def delay(self, depth: int) -> int:
        return depth - 1

    def build(self, request: LayerRequest) -> RecurrentLayer:
        K = self.kernel_size if request.kernel_size is None else request.kernel_size
        K = require_integer(_OWNER, "kernel_size", K, minimum=2)
        tensor_size = (request.depth * (K - K % 2) // 2,) * self.axes
        sizes = (request.input_size, request.hidden_size, tensor_size, K)
        if self.kind is TRNN:
            return TRNN(*sizes, request.recompute, request.backend)
        return TLSTM(
            *sizes,
            memory_convolution=self.memory_convolution,
            norm=self.norm,
            forget_bias=request.forget_bias,
            recompute=request.recompute,
            backend=request.backend,
        )


class StackVariant(Variant):
    """The paper's stacked LSTM, of one set of weights."""

    axes, has_forget_gate = 0, True

    def build(self, request: LayerRequest) -> StackedLSTM:
        _refuse_tensor_arguments(request)
        sizes = (request.input_size, request.hidden_size, request.depth)
        return StackedLSTM(*sizes, request.forget_bias, request.recompute)


#: The arguments that :class:`CellVariant` passes to a cell.
_CELL_ARGUMENTS = ("input_size", "hidden_size", "depth", "forget_bias")


@dataclasses.dataclass(frozen=True)
class CellVariant(Variant):
    """A cell in a :class:`mlx_tlstm.Recurrent` layer: one of :mod:`mlx_tlstm.rivals`, or your own.

    In :data:`VARIANTS` its name works wherever a variant's does: training, load, save::

        mlx_tlstm.VARIANTS["gru"] = mlx_tlstm.CellVariant(GRU)
        config = tasks.TASKS["memorization"].quick().for_variant("gru")
        mlx_tlstm.training.fit(config, "runs/gru")

    A program that loads such a model, or goes on with such a run, does the first line before.

    Args:
        cell: Makes the cell: a class, or a function, with the arguments ``input_size`` and
            ``hidden_size`` and, where the cell has them, ``depth`` and ``forget_bias``; others have
            defaults. See :class:`mlx_tlstm.Recurrent` for what a cell is. Without ``depth`` only a
            depth of 1 is accepted; a forget bias is for those that take one.
        settings: Settings of a :class:`mlx_tlstm.config.TrainingConfig` in place of a task's, such
            as the clipping that the cell's own paper names.

    Raises:
        ValueError: ``cell`` does not take such arguments.
    """

    cell: Callable[..., nn.Module]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    axes = 0

    def __post_init__(self) -> None:
        owner = type(self).__name__
        expected = "a class or function with arguments input_size and hidden_size"
        require(callable(self.cell), owner, "cell", expected, self.cell)
        try:
            parameters = inspect.signature(self.cell).parameters
        except ValueError:  # of a class of Python's own
            parameters = {}
        by_name = [n for n, p in parameters.items() if p.kind is not p.POSITIONAL_ONLY]
        missing = [name for name in _CELL_ARGUMENTS[:2] if name not in by_name]
        needed = [n for n, p in parameters.items() if n not in _CELL_ARGUMENTS and _is_needed(p)]
        expected = f"of no other arguments without defaults than {', '.join(_CELL_ARGUMENTS)}"
        require(not needed, owner, "cell", expected, f"one that needs {', '.join(needed)}")
        require(not missing, owner, "cell", "one with input_size and hidden_size", self.cell)
        valid = isinstance(self.settings, Mapping)
        require(valid, owner, "settings", "a mapping of TrainingConfig's fields", self.settings)
        known = {} if "depth" in parameters else {"depth": 1}
        object.__setattr__(self, "settings", MappingProxyType(known | dict(self.settings)))

    def __reduce__(self) -> tuple[Any, ...]:
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        values["settings"] = dict(self.settings)  # Python pickles no read-only mapping
        return functools.partial(type(self), **values), ()

    @property
    def has_forget_gate(self) -> bool:
        return "forget_bias" in inspect.signature(self.cell).parameters

    def build(self, request: LayerRequest) -> Recurrent:
        _refuse_tensor_arguments(request)
        names = [n for n in _CELL_ARGUMENTS if n in inspect.signature(self.cell).parameters]
        if "depth" not in names:
            request.require("depth", 1)
        cell = self.cell(**{name: getattr(request, name) for name in names})
        layer = Recurrent(cell, checkpoint=1 if request.recompute else None)
        layer.made_by = request
        return layer


def _is_needed(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic


def _refuse_tensor_arguments(request: LayerRequest) -> None:
    request.require("kernel_size", None)
    request.require("backend", None, "ops")


#: All networks by name: the paper's (a) to (g), four of ours, then :mod:`mlx_tlstm.rivals`. Add a
#: cell of your own as a :class:`CellVariant`.
VARIANTS: dict[str, Variant] = {
    "slstm": StackVariant(),
    "2d-tlstm": TensorVariant(TLSTM, 1, 3, True),
    "2d-tlstm-m": TensorVariant(TLSTM, 1, 3, False),
    "2d-tlstm-f": TensorVariant(TLSTM, 1, 2, True),
    "3d-tlstm": TensorVariant(TLSTM, 2, 3, True),
    "3d-tlstm+ln": TensorVariant(TLSTM, 2, 3, True, "layer"),
    "3d-tlstm+cn": TensorVariant(TLSTM, 2, 3, True, "channel"),
    "2d-trnn": TensorVariant(TRNN, 1, 3),
    "3d-trnn": TensorVariant(TRNN, 2, 3),
    "2d-tlstm+cn": TensorVariant(TLSTM, 1, 3, True, "channel"),
    "2d-tlstm+ln": TensorVariant(TLSTM, 1, 3, True, "layer"),
}


def variant_named(owner: str, name: object) -> Variant:
    """One of :data:`VARIANTS`; ``ValueError`` where there is none of that name."""
    known = isinstance(name, str) and name in VARIANTS
    if known and not isinstance(VARIANTS[name], Variant):
        expected = "a variant, as CellVariant makes one of a cell,"
        require(False, "VARIANTS", name, expected, VARIANTS[name])
    expected = f"one of {', '.join(map(repr, VARIANTS))}, or of a cell that you put into VARIANTS,"
    require(known, owner, "variant", expected, name)
    return VARIANTS[name]


def make_layer(
    variant: str,
    input_size: int,
    hidden_size: int,
    depth: int,
    forget_bias: float = 1.0,
    kernel_size: int | None = None,
    recompute: bool = False,
    backend: str | None = None,
) -> Layer:
    """Build a layer of one of :data:`VARIANTS`.

    Args:
        variant: Its name.
        input_size: R, width of an input.
        hidden_size: M, channels of each location.
        depth: L: an output comes L - 1 time steps after its input; without a tensor the number of
            layers. A tensor gets P = L (K - K mod 2) / 2 locations on every axis (Eq. 9).
        forget_bias: Starting bias of the forget gate; a network without one ignores it.
        kernel_size: K in place of the variant's.
        recompute: See :class:`TLSTM`.
        backend: See :class:`TLSTM`; networks without a tensor have plain operations only.

    Raises:
        ValueError: An argument is out of range or does not fit the variant.
    """
    named = variant_named(_OWNER, variant)
    sizes = (
        require_integer(_OWNER, "input_size", input_size),
        require_integer(_OWNER, "hidden_size", hidden_size),
        require_integer(_OWNER, "depth", depth),
    )
    recompute = require_flag(_OWNER, "recompute", recompute)
    forget_bias = require_forget_bias(_OWNER, forget_bias)
    request = LayerRequest(variant, *sizes, forget_bias, kernel_size, recompute, backend)
    return named.build(request)

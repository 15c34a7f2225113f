"""The contract between a step and a backend: which computations each backend has to provide.

There are three backends. :mod:`mlx_tlstm.reference` computes the paper's equations as they stand,
:mod:`mlx_tlstm.ops` uses MLX's operations in a quick order, and :mod:`mlx_tlstm.kernels` has
kernels for GPUs. :mod:`mlx_tlstm.recurrence.transition` calls them.

Shapes, here and in all backends: ``B`` batch, ``*P`` tensor size, ``*K`` kernel size, ``<K>``
number of taps, ``M`` hidden channels, ``O`` output channels.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx

from mlx_tlstm.geometry import Geometry

#: Inside the root of both normalisations (the paper gives none).
EPSILON = 1e-5

#: A cell's state: one array or two, batch first.
State = tuple[mx.array, ...]


class Step(NamedTuple):
    """One step of the forward pass.

    Attributes:
        projected: The input of the step, ``[B, M]``.
        before: State before the step.
        after: State after it.
        residuals: What else the backward pass needs.
    """

    projected: mx.array
    before: State
    after: State
    residuals: Any


@dataclasses.dataclass(frozen=True)
class MemoryUpdate:
    """Which memory update a cell has.

    Args:
        convolve: Convolve the memory cell (Eq. 16-18); otherwise Eq. 12.
        norm: ``None``, ``"channel"`` (over M) or ``"layer"`` (over all locations and channels).
    """

    convolve: bool
    norm: str | None

    @property
    def is_local(self) -> bool:
        """Whether a step takes from one location to another no more than its kernels reach.

        Layer normalisation's statistics run over the whole tensor.
        """
        return self.norm != "layer"

    def is_causal(self, depth: int) -> bool:
        """Whether no output depends on a later input.

        With layer normalisation an output depends on all inputs that are in the tensor when it
        leaves. At a depth of 1 it leaves before the next input comes.
        """
        return depth == 1 or self.is_local


class Prepared(NamedTuple):
    """A cell's parameters as every step of a sequence uses them."""

    weight: mx.array  # [O, *K, M]
    bias: mx.array  # [O]
    norm_gain: mx.array | None = None  # [*P, M] float32; None without normalisation
    norm_bias: mx.array | None = None
    matrix: mx.array | None = None  # the weight as [<K>·M, O], for plain operations


@dataclasses.dataclass(frozen=True)
class Backend(abc.ABC):
    """The parts of a step, each with its gradient; pure functions of their arguments.

    Args:
        geometry: Tensor and kernel size.
        update: Which memory update; ``None`` for a tRNN, which has none.
    """

    geometry: Geometry
    update: MemoryUpdate | None

    #: Whether MLX can differentiate and export a step, being made of MLX's own operations.
    plain: ClassVar[bool] = True

    #: Whether steps that only flush outputs run on a corner that shrinks (:meth:`Geometry.corner`),
    #: where the update is local. Each is a step of another tensor size.
    shrinks: ClassVar[bool] = False

    #: How many matrices of :meth:`makes_windows`'s size a step and its gradient hold at once, for
    #: the prediction of memory.
    products_kept: ClassVar[int] = 2

    def prepare(self, parameters: Sequence[mx.array]) -> Prepared:
        """From weight, bias and, with a norm, its gain and bias."""
        weight, bias, *norm = parameters
        return Prepared(weight, bias, *(array.astype(mx.float32) for array in norm))

    @abc.abstractmethod
    def convolution(
        self, hidden: mx.array, projected: mx.array, prepared: Prepared, tanh: bool = False
    ) -> mx.array:
        """Activations A_t of all locations (Eq. 5, 6, 22, 24), ``[B, *P, O]``.

        Args:
            hidden: H_{t-1}, ``[B, *P, M]``, of the weights' type like the others.
            projected: x_t W^x + b^x, ``[B, M]``.
            prepared: Of the sequence.
            tanh: Give tanh(A_t), a tRNN's H_t (Eq. 7).
        """

    @abc.abstractmethod
    def convolution_gradient(self, d_A: mx.array, prepared: Prepared) -> tuple[mx.array, mx.array]:
        """Gradients for ``hidden``, ``[B, *P, M]`` float32, and ``projected``, ``[B, M]``."""

    @abc.abstractmethod
    def weight_gradient_steps(self, batch_size: int, hidden_size: int) -> int:
        """The number of steps that :meth:`weight_gradient` takes at a time."""

    def makes_windows(self, batch_size: int, weight: mx.array) -> bool:
        """Whether the convolution makes a matrix of all that the locations read.

        ``[B·P, <K>·M]``, the largest array of a step.
        """
        return True

    @abc.abstractmethod
    def weight_gradient(
        self,
        hidden: Sequence[mx.array],
        projected: Sequence[mx.array],
        d_A: Sequence[mx.array],
        total: Sequence[mx.array] | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Gradients for weight and bias, float32, summed over batch and steps.

        Args:
            hidden: Of each step, as :meth:`convolution` took it; likewise the next.
            projected: Of each step.
            d_A: Of each step, ``[B, *P, O]``.
            total: Gradients to which these are added.
        """

    @abc.abstractmethod
    def memory_update(
        self, A: mx.array, C_before: mx.array, prepared: Prepared
    ) -> tuple[mx.array, mx.array, mx.array, Any]:
        """New hidden state and memory cell from the activations (Eq. 15-21, 25, 31).

        Args:
            A: Activations g, i, f, o and, with memory convolution, q: ``[B, *P, 4M (+ <K>)]``.
            C_before: C_{t-1}, ``[B, *P, M]`` float32.
            prepared: Of the sequence.

        Returns:
            H_t ``[B, *P, M]`` in the weights' type; C_t in float32; the output ``[B, M]``, which is
            H_t at the last location; and what the gradient needs besides the states.
        """

    def reduce(self, residuals: Any) -> Any:
        """The part of the residuals that is kept where the rest is computed anew."""
        return None

    @abc.abstractmethod
    def restore(self, residuals: Any, A: mx.array, C_before: mx.array, prepared: Prepared) -> Any:
        """All residuals of a memory update, from what :meth:`reduce` left and its arguments."""

    @abc.abstractmethod
    def memory_gradient(
        self,
        d_H: mx.array,
        d_output: mx.array | None,
        d_C: mx.array | None,
        later: Any | None,
        step: Step,
        prepared: Prepared,
    ) -> tuple[mx.array, Any]:
        """Gradient of :meth:`memory_update`.

        Args:
            d_H: Gradient of H_t, ``[B, *P, M]`` float32.
            d_output: Gradient of the step's output besides, ``[B, M]`` float32, or ``None``.
            d_C: Gradient of C_t beside ``later``'s, ``[B, *P, M]`` float32, or ``None``.
            later: What this method handed on for the step after; ``None`` for the last step.
            step: Of the cells before and after, and the residuals.
            prepared: Of the sequence.

        Returns:
            The gradient of A, in the weights' type, and what to hand to the step before, whose form
            is the backend's own.
        """

    @abc.abstractmethod
    def first_gradients(self, handed: Any) -> tuple[mx.array, Sequence[mx.array]]:
        """Gradients of the cell before the first step, and of the norm's gain and bias if any.

        ``handed`` is what :meth:`memory_gradient` of the first step handed on.
        """

    @abc.abstractmethod
    def tanh_gradient(self, d_H: mx.array, d_output: mx.array | None, H: mx.array) -> mx.array:
        """Gradient of A_t in H's type, where H_t = tanh(A_t); see :meth:`memory_gradient`."""

    @abc.abstractmethod
    def output(self, H: mx.array) -> mx.array:
        """The output ``[B, M]``, the hidden state at the last location."""

    @abc.abstractmethod
    def stack(self, arrays: Sequence[mx.array]) -> mx.array:
        """``mx.stack`` of arrays of all steps."""

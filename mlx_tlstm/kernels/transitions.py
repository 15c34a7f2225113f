"""One step of a tLSTM or tRNN as kernels: two launches forward, two backward."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import activation, convolution, memory, stacking
from mlx_tlstm.ops import MemoryUpdate
from mlx_tlstm.transition import State, Step


@dataclasses.dataclass(frozen=True)
class KernelTransition(abc.ABC):
    """What both cells share: the gradient of the weight, and the stacking of outputs."""

    geometry: Geometry

    def variants(self) -> tuple[KernelTransition, ...]:
        """This step, then the same with fewer threads, for a device that grants no more."""
        return (self,)

    def weight_gradient_steps(self, step: Step) -> int:
        return convolution.STEPS

    def weight_gradients(
        self,
        steps: Sequence[Step],
        d_activations: Sequence[mx.array],
        total: Sequence[mx.array] | None,
    ) -> Sequence[mx.array]:
        return convolution.cross_layer_convolution_weight_gradient(
            [step.before[0] for step in steps],
            [step.projected for step in steps],
            d_activations,
            self.geometry,
            total=total,
        )

    def output(self, state: State) -> mx.array:
        # A copy, since a view would keep the whole state of every step alive.
        corner = (slice(None), *([-1] * self.geometry.axes))
        return mx.contiguous(state[0][corner])

    def stack(self, arrays: Sequence[mx.array]) -> mx.array:
        return stacking.stack(arrays)


class PreparedTLSTM(NamedTuple):
    """Arrays that every step uses; gain and bias of the norm in float32."""

    weight: mx.array
    bias: mx.array
    norm_gain: mx.array | None
    norm_bias: mx.array | None


class TLSTMResiduals(NamedTuple):
    """What the backward pass of a step needs besides the states."""

    A: mx.array | None  # activations [B, *P, O]; computed anew where it was not kept
    statistics: mx.array | None  # of the norm


@dataclasses.dataclass(frozen=True)
class TLSTMTransition(KernelTransition):
    """One step of a tLSTM; parameters: weight, bias and, with a norm, its gain and bias."""

    update: MemoryUpdate
    threads: int = memory.THREADS_OF_EXAMPLE[0]

    def variants(self) -> tuple[TLSTMTransition, ...]:
        if self.update.norm != "layer":
            return (self,)
        counts = [count for count in memory.THREADS_OF_EXAMPLE if count <= self.threads]
        return tuple(dataclasses.replace(self, threads=count) for count in counts)

    def prepare(self, parameters: Sequence[mx.array]) -> PreparedTLSTM:
        weight, bias, *norm = parameters
        gain, norm_bias = (array.astype(mx.float32) for array in norm) if norm else (None, None)
        return PreparedTLSTM(weight, bias, gain, norm_bias)

    def _activations(self, prepared: PreparedTLSTM, H: mx.array, projected: mx.array) -> mx.array:
        weight, bias, *_ = prepared
        return convolution.cross_layer_convolution(H, projected, weight, bias, self.geometry)

    def forward(
        self, prepared: PreparedTLSTM, projected: mx.array, state: State
    ) -> tuple[State, TLSTMResiduals, mx.array]:
        H, C = state
        A = self._activations(prepared, H, projected)
        _, _, *norm = prepared
        H, C, output, statistics = memory.memory_update(
            A, C, *norm, self.update, self.geometry, self.threads
        )
        return (H, C), TLSTMResiduals(A, statistics), output

    def reduce(self, residuals: TLSTMResiduals) -> TLSTMResiduals:
        return residuals._replace(A=None)

    def restore(self, prepared: PreparedTLSTM, step: Step) -> TLSTMResiduals:
        A = self._activations(prepared, step.before[0], step.projected)
        return step.residuals._replace(A=A)

    def backward(
        self,
        prepared: PreparedTLSTM,
        step: Step,
        handed: tuple[mx.array, memory.MemoryGradient] | None,
        d_output: mx.array | None,
        d_after: State | None,
    ) -> tuple[mx.array, tuple[mx.array, memory.MemoryGradient], mx.array]:
        _, C_before = step.before
        H, C = step.after
        d_H, later = handed if handed is not None else (mx.zeros(H.shape), None)
        d_C = None
        if d_after is not None:
            d_H, d_C = d_H + d_after[0], d_after[1]
        d_A, gradient = memory.memory_update_backward(
            d_H,
            d_output,
            d_C,
            later,
            step.residuals.A,
            C_before,
            C,
            step.residuals.statistics,
            prepared.norm_gain,
            prepared.norm_bias,
            self.update,
            self.geometry,
            self.threads,
        )
        d_H, d_projected = convolution.cross_layer_convolution_input_gradient(
            d_A, prepared.weight, self.geometry
        )
        return d_projected, (d_H, gradient), d_A

    def finish(
        self, handed: tuple[mx.array, memory.MemoryGradient]
    ) -> tuple[State, Sequence[mx.array]]:
        d_H, gradient = handed
        d_C = memory.memory_gradient(gradient, self.update, self.geometry)
        sums = () if gradient.gain is None else (gradient.gain, gradient.bias)
        return (d_H, d_C), [mx.sum(total, axis=0) for total in sums]


@dataclasses.dataclass(frozen=True)
class TRNNTransition(KernelTransition):
    """One step of a tRNN; parameters: weight, bias."""

    def prepare(self, parameters: Sequence[mx.array]) -> Sequence[mx.array]:
        return parameters

    def forward(
        self, prepared: Sequence[mx.array], projected: mx.array, state: State
    ) -> tuple[State, None, mx.array]:
        H = convolution.cross_layer_convolution(
            state[0], projected, *prepared, self.geometry, activation="tanh"
        )
        return (H,), None, self.output((H,))

    def reduce(self, residuals: None) -> None:
        return None

    def restore(self, prepared: Sequence[mx.array], step: Step) -> None:
        return None

    def backward(
        self,
        prepared: Sequence[mx.array],
        step: Step,
        handed: mx.array | None,
        d_output: mx.array | None,
        d_after: State | None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        (H,) = step.after
        d_H = handed if handed is not None else mx.zeros(H.shape)
        if d_after is not None:
            d_H = d_H + d_after[0]
        d_A = activation.tanh_backward(d_H, d_output, H, self.geometry)
        d_H, d_projected = convolution.cross_layer_convolution_input_gradient(
            d_A, prepared[0], self.geometry
        )
        return d_projected, d_H, d_A

    def finish(self, handed: mx.array) -> tuple[State, Sequence[Any]]:
        return (handed,), ()

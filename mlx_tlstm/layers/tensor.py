"""What the tLSTM and the tRNN share: a hidden tensor under a cross-layer convolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import mlx.core as mx

from mlx_tlstm import kernels, ops, proof
from mlx_tlstm.checks import require_choice
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.layers.base import RecurrentCell, normal, require_countable
from mlx_tlstm.transition import PlainTransition, State, Step, Transition, last_location


@dataclasses.dataclass(frozen=True)
class TensorTransition(PlainTransition):
    """The parts of a step that a cross-layer convolution settles; parameters: weight, bias, …"""

    hidden_size: int
    geometry: Geometry

    @property
    def _corner(self) -> tuple[slice | int, ...]:
        return (slice(None), *([-1] * self.geometry.axes))

    def weight_gradient_elements(self, step: Step) -> int:
        rows = step.projected.shape[0] * self.geometry.locations
        return rows * self.geometry.taps * self.hidden_size

    def steps_weight_gradients(
        self, steps: Sequence[Step], d_activations: Sequence[mx.array]
    ) -> Sequence[mx.array]:
        return ops.cross_layer_convolution_weight_gradient(
            [step.before[0] for step in steps],
            [step.projected for step in steps],
            d_activations,
            self.geometry,
        )

    def output(self, state: State) -> mx.array:
        return last_location(state[0])

    def add_output_gradient(self, d_state: State, d_output: mx.array) -> State:
        d_H, *rest = d_state
        return (d_H.at[self._corner].add(d_output), *rest)


class TensorCell(RecurrentCell):
    """A cell whose state is a tensor ``[B, *P, M]`` and whose weight is a convolution kernel.

    ``backend`` names what runs its steps: ``"metal"``, ``"cuda"``, ``"ops"``, or ``None`` for what
    suits the default device; it may be set at any time. Kernels that are not right on a device
    (:mod:`mlx_tlstm.proof`) give way to plain operations, or are an error where they were named.
    """

    #: The step as kernels.
    kernel_transition: Transition

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        geometry: Geometry,
        channels: int,
        recompute: bool,
        backend: str | None,
    ) -> None:
        super().__init__(input_size, hidden_size, recompute)
        owner = type(self).__name__
        require_choice(owner, "backend", backend, (None, *kernels.BACKENDS))
        self.backend = backend
        self.geometry = geometry
        self.depth = geometry.depth
        self.delay = geometry.depth - 1
        shape = (channels, *geometry.kernel_size, hidden_size)
        require_countable(owner, "weight", shape)
        require_countable(owner, "state", self.state_shape)
        self.weight = normal(shape, fan_in=geometry.taps * hidden_size)
        self.bias = mx.zeros((channels,))

    def selected_backend(self) -> str:
        return kernels.select_backend(type(self).__name__, self.backend, self.geometry.axes)

    def active_transition(self, batch_size: int) -> Transition:
        if self.selected_backend() == "ops":
            return self.transition
        named, _ = kernels.named_backend(self.backend)
        return proof.choose(proof.Configuration.of(self, batch_size), explicit=named is not None)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (*self.geometry.tensor_size, self.hidden_size)

    def _extra_repr(self) -> str:
        return (
            f"input_size={self.input_size}, hidden_size={self.hidden_size}, "
            f"tensor_size={self.geometry.tensor_size}, kernel_size={self.geometry.kernel_size}"
        )

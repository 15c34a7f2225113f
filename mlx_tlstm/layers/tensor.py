"""What the tLSTM and the tRNN share: a hidden tensor under a cross-layer convolution."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx

from mlx_tlstm import kernels
from mlx_tlstm.checks import require_choice
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import KernelBackend, proof
from mlx_tlstm.kernels.library import SMALLEST
from mlx_tlstm.kernels.trial import Configuration
from mlx_tlstm.layers.base import RecurrentCell, normal, require_countable
from mlx_tlstm.ops import PlainBackend
from mlx_tlstm.recurrence.contract import Backend, MemoryUpdate
from mlx_tlstm.recurrence.transition import TensorTransition


class TensorCell(RecurrentCell):
    """A cell whose state is a tensor ``[B, *P, M]`` and whose weight is a convolution kernel.

    A subclass names its step. ``backend`` names what computes it: ``"metal"``, ``"cuda"``,
    ``"ops"``, ``"reference"``, or ``None`` for the fastest on the default device; it may be set at
    any time. On fewer than 8 numbers, as a batch of one example with M = 7, plain operations run in
    the kernels' place. Before kernels are used they are proven right on the device
    (:mod:`mlx_tlstm.kernels.proof`). If they are not, plain operations run in their place; if
    ``backend`` asked for the kernels by name, it is an error.
    """

    transition_type: ClassVar[type[TensorTransition]]
    transition: TensorTransition

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        geometry: Geometry,
        update: MemoryUpdate | None,
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
        self.transition = self.transition_type(PlainBackend(geometry, update), self.hidden_size)
        shape = (channels, *geometry.kernel_size, hidden_size)
        require_countable(owner, "weight", shape)
        require_countable(owner, "state", self.state_shape)
        self.weight = normal(shape, fan_in=geometry.taps * hidden_size)
        self.bias = mx.zeros((channels,))

    def selected_backend(self) -> str:
        return kernels.select_backend(type(self).__name__, self.backend, self.geometry.axes)

    def active_transition(self, batch_size: int) -> TensorTransition:
        kind = kernels.BACKENDS[self.selected_backend()]
        if kind.plain:
            return self._on(kind)
        if batch_size * self.hidden_size < SMALLEST:
            return self.transition
        named, _ = kernels.named_backend(self.backend)
        return proof.choose(Configuration.of(self, batch_size), explicit=named is not None)

    @property
    def kernel_transition(self) -> TensorTransition:
        """The step as kernels, proven or not."""
        return self._on(KernelBackend)

    def _on(self, kind: type[Backend]) -> TensorTransition:
        return self.transition.on(kind(self.geometry, self.transition.backend.update))

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (*self.geometry.tensor_size, self.hidden_size)

    def arguments(self) -> dict[str, Any]:
        sizes = {
            name: list(getattr(self.geometry, name)) for name in ("tensor_size", "kernel_size")
        }
        return super().arguments() | sizes

"""The configurations of the paper's Section 3 by name."""

from __future__ import annotations

import dataclasses

from mlx_tlstm.checks import require_choice, require_integer
from mlx_tlstm.layers import TLSTM, TRNN, StackedLSTM
from mlx_tlstm.layers.base import RecurrentLayer
from mlx_tlstm.recurrence.contract import MemoryUpdate


@dataclasses.dataclass(frozen=True)
class Variant:
    """A named configuration.

    Args:
        kind: Layer class.
        axes: Number of tensor axes; 0 for stacked layers.
        kernel_size: K on every axis; 0 for stacked layers.
        memory_convolution: Whether the memory cell is convolved.
        norm: ``None``, ``"channel"`` or ``"layer"``.
    """

    kind: type[RecurrentLayer]
    axes: int = 0
    kernel_size: int = 0
    memory_convolution: bool = False
    norm: str | None = None

    def is_causal(self, depth: int) -> bool:
        """Whether no output depends on a later input, as the layer's cell says."""
        return MemoryUpdate(self.memory_convolution, self.norm).is_causal(depth)

    def delay(self, depth: int) -> int:
        """Time steps between an input and its output at depth L; the layer's ``delay``."""
        return 0 if self.kind is StackedLSTM else depth - 1


#: All configurations by name: first the paper's (a) to (g), then four of ours.
VARIANTS: dict[str, Variant] = {
    "slstm": Variant(StackedLSTM),
    "2d-tlstm": Variant(TLSTM, 1, 3, True),
    "2d-tlstm-m": Variant(TLSTM, 1, 3, False),
    "2d-tlstm-f": Variant(TLSTM, 1, 2, True),
    "3d-tlstm": Variant(TLSTM, 2, 3, True),
    "3d-tlstm+ln": Variant(TLSTM, 2, 3, True, "layer"),
    "3d-tlstm+cn": Variant(TLSTM, 2, 3, True, "channel"),
    "2d-trnn": Variant(TRNN, 1, 3),
    "3d-trnn": Variant(TRNN, 2, 3),
    "2d-tlstm+cn": Variant(TLSTM, 1, 3, True, "channel"),
    "2d-tlstm+ln": Variant(TLSTM, 1, 3, True, "layer"),
}


def make_layer(
    variant: str,
    input_size: int,
    hidden_size: int,
    depth: int,
    forget_bias: float = 1.0,
    kernel_size: int | None = None,
    memory_init: str = "uniform",
    recompute: bool = False,
    backend: str | None = None,
) -> RecurrentLayer:
    """Build a layer of one of :data:`VARIANTS`.

    Args:
        variant: Name of the configuration.
        input_size: R, width of an input.
        hidden_size: M, channels of each location.
        depth: L, the time steps that an input takes to reach the output, or the number of stacked
            layers. The tensor gets P = L (K - K mod 2) / 2 locations on every axis (Eq. 9).
        forget_bias: Starting bias of the forget gate; a tRNN has none and ignores it.
        kernel_size: K in place of the variant's.
        memory_init: See :class:`TLSTM`; only layers with memory convolution take another value.
        recompute: See :class:`TLSTM`.
        backend: See :class:`TLSTM`; the stacked LSTM has plain operations only.

    Raises:
        ValueError: An argument is out of range or does not fit the variant.
    """
    owner = "make_layer"
    require_choice(owner, "variant", variant, VARIANTS)
    depth = require_integer(owner, "depth", depth)
    spec = VARIANTS[variant]
    if not spec.memory_convolution:
        require_choice(owner, f"memory_init (of {variant})", memory_init, ("uniform",))
    if spec.kind is StackedLSTM:
        require_choice(owner, "kernel_size (of slstm)", kernel_size, (None,))
        require_choice(owner, "backend (of slstm)", backend, (None, "ops"))
        return StackedLSTM(input_size, hidden_size, depth, forget_bias, recompute)
    if kernel_size is None:
        kernel_size = spec.kernel_size
    kernel_size = require_integer(owner, "kernel_size", kernel_size, minimum=2)
    tensor_size = (depth * (kernel_size - kernel_size % 2) // 2,) * spec.axes
    if spec.kind is TRNN:
        return TRNN(input_size, hidden_size, tensor_size, kernel_size, recompute, backend)
    return TLSTM(
        input_size,
        hidden_size,
        tensor_size,
        kernel_size,
        memory_convolution=spec.memory_convolution,
        norm=spec.norm,
        forget_bias=forget_bias,
        memory_init=memory_init,
        recompute=recompute,
        backend=backend,
    )

"""How many bytes a time step takes in training, for each kind of layer and for kernels."""

from __future__ import annotations

import dataclasses
import math

from mlx_tlstm.layers.base import RecurrentCell
from mlx_tlstm.layers.stacked import StackedLSTMCell
from mlx_tlstm.layers.tensor import TensorCell
from mlx_tlstm.layers.tlstm import TLSTMCell

FLOAT32 = 4
#: Elements for each element of the state that a step of the LSTMs' backward pass makes and drops.
_GATE_TRANSIENTS = 20
#: The same for a tRNN.
_TRNN_TRANSIENTS = 6
#: Steps that MLX schedules ahead of what runs, some 50 operations on a CPU: a tRNN's are shorter.
_STEPS_AHEAD, _TRNN_STEPS_AHEAD = 1, 3
#: On a GPU, eleven command buffers of 50 operations, four a step, each closed at 50 MB.
_GPU_STEPS_AHEAD, _GPU_BYTES_AHEAD = 11 * 50 // 4, 11 * 50_000_000


@dataclasses.dataclass(frozen=True)
class StepBytes:
    """Bytes of one time step of B sequences.

    Args:
        state: The state after the step, kept until the backward pass has used it.
        residuals: What the forward pass keeps for the backward pass besides.
        pending: What is kept until the weight gradient is computed: the hidden state and the
            gradient of the activations.
        gathered: What the computation of the weight gradient adds: copies of these, and the rows
            of a matrix product.
        transient: What a step of the backward pass allocates and frees again.
        ahead: Number of steps whose ``transient`` is in memory at once.
        turn: Number of time steps whose weight gradient is computed at once.
    """

    state: int
    residuals: int
    pending: int
    gathered: int
    transient: int
    ahead: int
    turn: int

    @classmethod
    def of(cls, cell: RecurrentCell, rows: int, recompute: bool) -> StepBytes:
        """The bytes that a time step of ``cell`` takes on the default device.

        Args:
            cell: The cell; its weights need not be evaluated.
            rows: B, the number of sequences.
            recompute: Whether the backward pass computes activations anew.
        """
        transition = cell.active_transition(rows)
        size, M = cell.weight.dtype.size, cell.hidden_size
        if not transition.plain:
            turn = transition.weight_gradient_steps(rows)
            return _kernels(cell, rows, recompute, size, turn)
        # The reference's equations need no more than plain operations do.
        transition = cell.transition
        turn = transition.weight_gradient_steps(rows)
        if isinstance(cell, StackedLSTMCell):
            product_rows = size * transition.gathered(rows)
            return _stacked(cell, rows, recompute, size, turn, product_rows)
        product_rows = size * transition.backend.gathered(rows, M)
        return _tensor(cell, rows, recompute, size, turn, product_rows)


def _state(cell: RecurrentCell, rows: int) -> tuple[int, int]:
    """Bytes of the hidden state alone, and of the whole state."""
    elements = rows * math.prod(cell.state_shape)
    sizes = [dtype.size for dtype in cell.state_dtypes()]
    return elements * sizes[0], elements * sum(sizes)


def _memory_residuals(cell: TLSTMCell, rows: int) -> int:
    """Bytes of :class:`mlx_tlstm.ops.Residuals`, all float32."""
    update, M = cell.memory_update, cell.hidden_size
    channels = cell.weight.shape[0] + M  # the gates with q, and Z
    if update.convolve:
        channels += cell.geometry.taps + M  # Q, C_conv
    if update.norm is not None:
        channels += M  # C_hat
    return FLOAT32 * rows * cell.geometry.locations * channels


def _tensor(
    cell: TensorCell, rows: int, recompute: bool, size: int, turn: int, product_rows: int
) -> StepBytes:
    """A tLSTM or tRNN as plain operations."""
    geometry, M = cell.geometry, cell.hidden_size
    is_lstm = isinstance(cell, TLSTMCell)
    hidden, state = _state(cell, rows)
    d_activation = size * rows * geometry.locations * cell.weight.shape[0]
    with_inputs = hidden + size * rows * M
    element_wise = _GATE_TRANSIENTS if is_lstm else _TRNN_TRANSIENTS
    return StepBytes(
        state=state,
        residuals=_memory_residuals(cell, rows) if is_lstm and not recompute else 0,
        pending=hidden + d_activation,
        gathered=with_inputs + d_activation + product_rows,
        # The windows' gradient and its folding, and what is element-wise.
        transient=2 * product_rows + element_wise * FLOAT32 * hidden // size,
        ahead=_STEPS_AHEAD if is_lstm else _TRNN_STEPS_AHEAD,
        turn=turn,
    )


def _stacked(
    cell: StackedLSTMCell, rows: int, recompute: bool, size: int, turn: int, product_rows: int
) -> StepBytes:
    hidden, state = _state(cell, rows)
    d_activation = 4 * hidden
    # Gates and Z, in float32.
    residuals = 5 * FLOAT32 * hidden // size
    return StepBytes(
        state=state,
        residuals=0 if recompute else residuals,
        pending=hidden + d_activation,
        # The layers below, step by step and joined, and the past.
        gathered=d_activation + 3 * hidden + product_rows,
        transient=_GATE_TRANSIENTS * FLOAT32 * hidden // size,
        ahead=_STEPS_AHEAD,
        turn=turn,
    )


def _kernels(cell: TensorCell, rows: int, recompute: bool, size: int, turn: int) -> StepBytes:
    """A tLSTM or tRNN as kernels, which gather nothing and keep A in the weights' type."""
    geometry, M = cell.geometry, cell.hidden_size
    locations = rows * geometry.locations
    hidden, state = _state(cell, rows)
    activation = size * locations * cell.weight.shape[0]
    residuals = 0
    handed = FLOAT32 * locations * M  # the gradient of H
    if isinstance(cell, TLSTMCell):
        norm = cell.memory_update.norm
        statistics = {None: 0, "channel": locations, "layer": rows}[norm]
        residuals = 2 * FLOAT32 * statistics + (0 if recompute else activation)
        sums = 2 if norm is not None else 0  # of the gradients of gain and bias
        handed += FLOAT32 * locations * ((1 + sums) * M + geometry.taps)
    each = activation + handed
    return StepBytes(
        state=state,
        residuals=residuals,
        pending=hidden + activation,
        gathered=0,
        transient=each,
        ahead=max(1, min(_GPU_STEPS_AHEAD, _GPU_BYTES_AHEAD // each)),
        turn=turn,
    )

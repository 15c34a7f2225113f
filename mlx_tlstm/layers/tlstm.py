"""The Tensorized LSTM (Eq. 14-23, 31)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn

from mlx_tlstm.checks import require_choice, require_flag, require_integer
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.layers.base import RecurrentLayer, gate_bias, require_forget_bias
from mlx_tlstm.layers.tensor import TensorCell
from mlx_tlstm.recurrence.contract import MemoryUpdate
from mlx_tlstm.recurrence.transition import TLSTMTransition


class TLSTMState(NamedTuple):
    """State of a tLSTM: hidden state H and memory cell C, each ``[B, *P, M]``; C is float32."""

    hidden: mx.array
    cell: mx.array


class Normalization(nn.Module):
    """Gain and bias ``[*P, M]`` of channel or layer normalisation (Eq. 20).

    ``"channel"`` normalises each location over its channels, ``"layer"`` the whole tensor of an
    example; both only inside H = tanh(Norm(C)) * O (Eq. 31).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gain = mx.ones(shape)
        self.bias = mx.zeros(shape)


class TLSTMCell(TensorCell):
    """One time step of a tLSTM; arguments, parameters and errors as :class:`TLSTM` lists them."""

    state_type = TLSTMState
    transition_type = TLSTMTransition

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        tensor_size: int | Sequence[int],
        kernel_size: int | Sequence[int] = 3,
        memory_convolution: bool = True,
        norm: str | None = None,
        forget_bias: float = 1.0,
        recompute: bool = False,
        backend: str | None = None,
    ) -> None:
        owner = type(self).__name__
        geometry = Geometry.checked(owner, tensor_size, kernel_size)
        memory_convolution = require_flag(owner, "memory_convolution", memory_convolution)
        require_choice(owner, "norm", norm, (None, "channel", "layer"))
        forget_bias = require_forget_bias(owner, forget_bias)
        M, taps = require_integer(owner, "hidden_size", hidden_size), geometry.taps
        channels = 4 * M + (taps if memory_convolution else 0)
        update = MemoryUpdate(memory_convolution, norm)
        super().__init__(input_size, M, geometry, update, channels, recompute, backend)
        self.bias = gate_bias(channels, M, taps * M, forget_bias)
        self.norm = None if norm is None else Normalization((*geometry.tensor_size, M))

    def transition_parameters(self) -> list[mx.array]:
        norm = [] if self.norm is None else [self.norm.gain, self.norm.bias]
        return [self.weight, self.bias, *norm]

    @property
    def memory_update(self) -> MemoryUpdate:
        """Which memory update it has."""
        return self.transition.backend.update

    @property
    def causal(self) -> bool:
        return self.memory_update.is_causal(self.depth)

    def arguments(self) -> dict[str, Any]:
        update = self.memory_update
        return super().arguments() | {"memory_convolution": update.convolve, "norm": update.norm}


class TLSTM(RecurrentLayer):
    r"""A Tensorized LSTM over sequences: ``x [B, T, R]`` to outputs ``y [B, T, M]``.

    At each step the projected input stands before the first location of the hidden tensor
    H ``[B, *P, M]``, which makes H^{cat} (Eq. 5, 22), and

    .. math::
        [A^g, A^i, A^f, A^o, A^q] &= H^{cat}_{t-1} \circledast \{W^h, b^h\} \\
        [G, I, F, O] &= [\tanh A^g, \sigma(A^i), \sigma(A^f), \sigma(A^o)],
            \quad Q = \mathrm{softmax}(A^q) \\
        C_t &= G \odot I + (C_{t-1} \circledast Q) \odot F \\
        H_t &= \tanh(\mathrm{Norm}(C_t)) \odot O

    where Q are kernels for the memory cell C ``[B, *P, M]``, one for each location and time
    (Eq. 14-21, 25, 31; each is a function of :mod:`mlx_tlstm.reference`). The output is H at the
    last location, L - 1 steps after its input (Eq. 8, 9, 23).

    ``layer.cell`` is one time step, a :class:`TLSTMCell`; ``layer.depth`` is L, ``layer.delay``
    L - 1.

    Args:
        input_size: R, width of an input.
        hidden_size: M, channels of each location.
        tensor_size: P of each tensor axis; an integer is one axis.
        kernel_size: K, 2 or more; an integer serves all axes. K = 2 has no feedback.
        memory_convolution: Convolve the memory cell (Eq. 16-18); otherwise Eq. 12.
        norm: ``None``, ``"channel"`` or ``"layer"``. With ``"layer"`` and a depth above 1 an
            output depends on later inputs, since the statistics run over the whole tensor.
        forget_bias: Starting bias of the forget gate.
        recompute: Keep no gate activations for the backward pass, but compute them anew there:
            one more convolution a step, the same gradients, less memory.
        backend: What runs the steps: kernels, ``"metal"`` or ``"cuda"``; ``"ops"``, plain
            operations; ``"reference"``, the equations as they stand, slowly. ``None`` takes what
            the environment variable ``MLX_TLSTM_BACKEND`` says, else what suits the default device.

    Parameters, in MLX's convolution layout: ``weight [4M + <K>, *K, M]`` and ``bias``, output
    channels in the order g, i, f, o, q, with <K> taps, the product of K; ``input_projection``
    (``nn.Linear``); ``norm.gain`` and ``norm.bias`` ``[*P, M]``.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    cell_type = TLSTMCell

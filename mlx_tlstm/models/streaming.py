"""A model over a stream of inputs that come one by one."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_tlstm.checks import require
from mlx_tlstm.models.sequence import SequenceModel, require_model
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.recurrence.snapshot import require_evaluated


class StreamingSession:
    """Feeds a model one input at a time, each for the work of one time step.

    A deep tLSTM answers an input ``delay`` = L - 1 steps later and takes the next ones meanwhile:
    :meth:`push` returns what answers the input ``delay`` pushes before. :meth:`flush` ends the
    sequence and returns the answers that are still on their way. Together these are the logits
    that ``model(x)`` gives for the whole sequence, up to the rounding of the matrix products,
    which sum in another order when they have one time step's rows. The stacked LSTM has delay 0.

    MLX computes an output in the background; reading it waits. Weights that change in between are
    used from the next input on.

    Many sessions of one model may run at once, each in any thread, and from push to push in
    another, while the model trains in one more.

    Args:
        model: The model, best in evaluation mode (``model.eval()``), where no step keeps anything
            for a gradient.

    Raises:
        ValueError: ``model`` is no :class:`SequenceModel`, or of a subclass with its own
            ``__call__``, or another thread built its weights and has not evaluated them.
    """

    def __init__(self, model: SequenceModel) -> None:
        owner = type(self).__name__
        require_model(owner, model)
        require_evaluated(owner, model)
        self._model = model
        self._step = CompiledFunction(model, _step)
        self.reset()

    @property
    def delay(self) -> int:
        """Pushes between an input and its answer: L - 1, or 0 for a stacked LSTM."""
        return self._model.layer.delay

    def reset(self) -> None:
        """Start a new sequence from the zero state; its batch size may be another."""
        self._state: Any = None
        self._shape: tuple[int, ...] | None = None
        self._count = 0
        self._ended = False

    def push(self, x: mx.array) -> mx.array | None:
        """Take the next input.

        Args:
            x: ``[B, R]``, or ``[R]`` for one sequence.

        Returns:
            Logits ``[B, S]`` (or ``[S]``): the answer to the input ``delay`` pushes before, which
            knows all inputs up to that one. ``None`` in the first ``delay`` pushes.

        Raises:
            ValueError: The shape is wrong or not that of the inputs before, the dtype is none of
                floating-point numbers, or the sequence has ended.
        """
        owner = type(self).__name__
        self._require_running()
        valid = isinstance(x, mx.array) and x.ndim in (1, 2)
        require(valid, owner, "x", "an mx.array of shape [B, R] or [R]", x)
        if self._shape is not None:
            expected = f"of shape {self._shape} as the inputs before"
            require(x.shape == self._shape, owner, "x", expected, x.shape)
        logits = self._advance(x)
        self._shape = x.shape
        self._count += 1
        return logits if self._count > self.delay else None

    def flush(self) -> list[mx.array]:
        """End the sequence, and return the answers that are still on their way.

        These are the answers to the last ``delay`` inputs, or to all if there were fewer, each as
        from :meth:`push`. Call :meth:`reset` before the next sequence.

        Raises:
            ValueError: The sequence has ended before.
        """
        self._require_running()
        self._ended = True
        if self._shape is None or self.delay == 0:
            return []
        # The layer's own flush: a zero input projects to the bias.
        logits = [self._advance(mx.zeros(self._shape)) for _ in range(self.delay)]
        return logits[-min(self._count, self.delay) :]

    def _advance(self, x: mx.array) -> mx.array:
        """Logits after one more input ``[B, R]`` or ``[R]``, on their way."""
        logits, self._state = self._step(x, self._state)
        # Starts the work, and keeps the graph of a long stream from growing.
        mx.async_eval(logits, self._state)
        return logits

    def _require_running(self) -> None:
        owner = type(self).__name__
        require(not self._ended, owner, "session", "reset after flush", "an ended sequence")


def _step(model: SequenceModel, x: mx.array, state: Any) -> tuple[mx.array, Any]:
    y, state = model.layer.stream(mx.expand_dims(x, -2), state)  # one time step
    return model.readout(y)[..., 0, :], state

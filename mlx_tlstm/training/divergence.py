"""A loss or a gradient that is not finite."""

from __future__ import annotations


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is infinite or no number.

    Attributes:
        quantity: What is not finite.
        value: Its value.
        step: Training steps done, this one included.
        batch: Number of the training batch that gave it, from 0; ``None`` in an evaluation.
    """

    def __init__(
        self, message: str, quantity: str, value: float, step: int, batch: int | None
    ) -> None:
        super().__init__(message, quantity, value, step, batch)  # all, to be copied and pickled
        self.quantity, self.value, self.step, self.batch = quantity, value, step, batch

    def __str__(self) -> str:
        return self.args[0]

    @property
    def updates(self) -> int:
        """How often the weights had been updated when the value was computed."""
        return self.step if self.batch is None else self.batch

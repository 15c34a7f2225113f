"""Examples of a task's test split, and how their symbols are written."""

from __future__ import annotations

import numpy as np

from mlx_tlstm.checks import require
from mlx_tlstm.tasks import Task, Wikipedia
from mlx_tlstm.tasks.generated import GeneratedTask

#: How white space is written under the picture, and bytes that are no printed ASCII.
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "→"}
_UNPRINTED = "·"


def example_of(task: Task, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``[T]`` or ``[T, R]`` and targets ``[T]`` of an example of the test split.

    Sequences that go on from the state of a batch before are none of their own.

    Raises:
        ValueError: The split has no such example.
    """
    first = 0
    for batch in task.eval_batches("test"):
        if batch.fresh and number < first + len(batch.inputs):
            return batch.inputs[number - first], batch.targets[number - first]
        first += len(batch.inputs) if batch.fresh else 0
    require(False, "memory_cells", "example", f"below {first:,}, the test examples,", number)


def characters(task: Task, symbols: np.ndarray) -> list[str]:
    """A visible character for each symbol, or the digit for each class of images."""
    if isinstance(task, GeneratedTask):
        return list(task.decode(symbols))
    if not isinstance(task, Wikipedia):
        return [str(symbol) for symbol in symbols]
    text = [chr(task.symbols[symbol]) for symbol in symbols]
    printed = [c if c.isascii() and c.isprintable() else _UNPRINTED for c in text]
    return [_VISIBLE.get(c, p) for c, p in zip(text, printed, strict=True)]

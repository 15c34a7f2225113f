"""Several processes that train one model, each on its share of every batch.

The first process leads: it alone decides, evaluates and writes files. Before each operation that
all processes take part in, it announces the operation; the others wait for that in
:func:`mlx_tlstm.training.follow` and then do the same. All communication is made of sums over
``mx.distributed``'s group, in which every process has to take part.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from mlx_tlstm.checks import require
from mlx_tlstm.kernels.faults import device_failed

#: What the first process may announce, by number.
OPERATIONS = ("end", "step", "arrays", "restore")


class WorkerLostError(RuntimeError):
    """Another process of the group is gone."""


@dataclasses.dataclass
class Workers:
    """The processes that ``mlx.launch`` started, seen from this one; without it there is one.

    Args:
        rank: Number of this process, from 0.
        size: How many there are.

    Attributes:
        stop_asked: In the first process, whether another was asked to stop.
    """

    rank: int = 0
    size: int = 1
    stop_asked: bool = False

    @classmethod
    def launched(cls) -> Workers:
        """The workers among which ``mlx.launch`` started this process.

        Raises:
            WorkerLostError: MLX cannot join them.
        """
        try:
            group = mx.distributed.init()
        except RuntimeError as error:  # also where mlx.launch started this process alone
            raise WorkerLostError(
                f"[Workers] MLX cannot join the processes that mlx.launch started ({error}); it "
                "takes two or more (-n 2), and one trains without it (python -m mlx_tlstm.train)"
            ) from error
        return cls(group.rank(), group.size())

    @property
    def first(self) -> bool:
        """Whether this process leads."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """The rows of a batch that this process takes.

        Raises:
            ValueError: The batch cannot be divided evenly.
        """
        expected = f"a multiple of the {self.size} workers"
        require(batch_size % self.size == 0, "Workers", "batch_size", expected, batch_size)
        count = batch_size // self.size
        return slice(self.rank * count, (self.rank + 1) * count)

    def announce(self, operation: str) -> None:
        """In the first process: tell all what comes next, and hear whether they should stop."""
        if self.size > 1:
            number = OPERATIONS.index(operation)
            _, stops = self._exchange(number, False)
            self.stop_asked = self.stop_asked or stops

    def awaited(self, stop: bool) -> str:
        """In another process: wait for what the first announces; ``stop`` asks it to end
        training.

        Raises:
            WorkerLostError: A process of the group is gone.
        """
        number, _ = self._exchange(0, stop)
        return OPERATIONS[number]

    def _exchange(self, number: int, stop: bool) -> tuple[int, bool]:
        with self._watched():
            message = mx.array([number, int(stop)], dtype=mx.int32)
            number, stops = mx.distributed.all_sum(message, stream=mx.cpu).tolist()
        return number, stops > 0

    def mean(self, tree: Any) -> Any:
        """The mean over all processes of each array in a tree."""
        if self.size == 1:
            return tree
        summed = self._together(mx.distributed.all_sum, tree)
        return tree_map(lambda array: array / self.size, summed)

    def joined(self, tree: Any) -> Any:
        """The shares of all processes, joined along the batch axis, which is the first.

        An array without axes is the same in all of them.
        """
        if self.size == 1:
            return tree
        return self._together(lambda a: mx.distributed.all_gather(a) if a.ndim else a, tree)

    def from_first(self, tree: Any) -> Any:
        """The first process's arrays, in all processes; the others pass some of the same shapes."""
        if self.size == 1:
            return tree
        zero_unless_first = tree if self.first else tree_map(mx.zeros_like, tree)
        return self._together(mx.distributed.all_sum, zero_unless_first)

    def _together(self, operation: Callable[[mx.array], mx.array], tree: Any) -> Any:
        """The arrays of a tree after an operation in which all processes take part.

        They are evaluated before and after: a GPU whose work waits for another machine stops it
        after some seconds, on a Mac after five.
        """
        with self._watched():
            mx.eval(tree)
            found = tree_map(operation, tree)
            mx.eval(found)
        return found

    def text_from_first(self, text: str) -> str:
        """The first process's text, in all processes."""
        if self.size == 1:
            return text
        raw = text.encode()
        length = self.from_first(mx.array(len(raw))).item()
        mine = mx.array(list(raw), dtype=mx.int32) if self.first else mx.zeros(length, mx.int32)
        return bytes(self.from_first(mine).tolist()).decode()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Turn errors of the communication into :class:`WorkerLostError`.

        Raises:
            WorkerLostError: A process of the group is gone.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or device_failed(error):
                raise
            raise WorkerLostError(
                f"[Workers] worker {self.rank} of {self.size} lost the others, whose messages say "
                f"why ({error}); the run goes on from its last checkpoint with --resume"
            ) from error

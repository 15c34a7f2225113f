"""The paper's five tasks. A new task is one file here and one line in :data:`TASKS`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mlx_tlstm.checks import require
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks.addition import Addition
from mlx_tlstm.tasks.base import Batch, Task, require_complete
from mlx_tlstm.tasks.downloads import DataUnavailableError
from mlx_tlstm.tasks.memorization import Memorization
from mlx_tlstm.tasks.mnist import Mnist, PermutedMnist
from mlx_tlstm.tasks.wikipedia import Wikipedia

__all__ = [
    "BUILT_IN",
    "TASKS",
    "Addition",
    "Batch",
    "DataUnavailableError",
    "Memorization",
    "Mnist",
    "PermutedMnist",
    "Task",
    "Wikipedia",
    "make_task",
    "remembered_data",
    "task_type",
]

#: Tasks by name; the first is the command line's default.
TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Memorization, Addition, Wikipedia, Mnist, PermutedMnist)
}
#: Those that the commands know; others, and others of these names, are a user's own.
BUILT_IN = dict(TASKS)


def make_task(config: TrainingConfig) -> Task:
    """Build the task that ``config.task`` names; data is loaded, or downloaded, here.

    Raises:
        ValueError: Unknown name, a setting or file that the task cannot use, or a task of your own
            that lacks what :class:`Task` asks for.
        FileNotFoundError: ``config.data`` does not exist.
        DataUnavailableError: The data can neither be downloaded nor found in the cache.
    """
    task = task_type(config.task)(config)
    require_complete(task)
    return task


@contextlib.contextmanager
def remembered_data(data: object | None) -> Iterator[None]:
    """Add to a ``FileNotFoundError``, raised inside, how to say where the data is now.

    Args:
        data: The place that the user named. If it is not ``None`` the advice is left out: then the
            user knows how to name one.
    """
    try:
        yield
    except FileNotFoundError as error:
        advice = "" if data is not None else "; --data, or data=, says where it is now"
        raise FileNotFoundError(f"{error}{advice}") from error


def task_type(name: str) -> type[Task]:
    """The class of a task by its name; ``ValueError`` where there is none."""
    known = isinstance(name, str) and name in TASKS
    expected = f"one of {', '.join(map(repr, TASKS))}, or one of your own that you put into TASKS,"
    require(known, "TrainingConfig", "task", expected, name)
    return TASKS[name]

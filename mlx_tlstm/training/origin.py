"""The task that a model was trained on, and the command that trains it."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from mlx_tlstm import rivals, tasks
from mlx_tlstm.checks import require
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.files import to_path
from mlx_tlstm.layers.variants import VARIANTS
from mlx_tlstm.models.sequence import SequenceModel, class_count
from mlx_tlstm.tasks import TASKS, Task, make_task, remembered_data


def task_of(model: SequenceModel, data: str | Path | None = None) -> Task:
    """The task that a model was trained on, with its data.

    Args:
        model: A model with :attr:`ModelMetadata.training`, as runs and what is saved of them have.
        data: Where the data is; ``None`` looks where it was in training.

    Raises:
        ValueError: It is not known what the model was trained with, or the data has other sizes or
            symbols than the model.
        FileNotFoundError: There is no such data.
        DataUnavailableError: The data cannot be downloaded.
    """
    config = model.metadata.training
    require(config is not None, "task_of", "model", "one that knows its training", model.metadata)
    if data is not None:
        config = config.replace(data=str(to_path("task_of", "data", data)))
    with remembered_data(data):
        task = make_task(config)
    sizes = (model.layer.input_size, class_count(model))
    expected = f"the one that the model was trained on, with {sizes} inputs and classes,"
    found = (task.input_size, task.output_size)
    require(found == sizes, "task_of", "data", expected, found)
    same = model.metadata.symbols in (None, task.symbols)
    require(same, "task_of", "data", "of the symbols that the model knows", task.symbols)
    return task


def known_to_commands(config: TrainingConfig) -> bool:
    """Whether task and variant are what the commands, which run by themselves, know by the names.

    Those of the user's own are not: they are in the registries of the user's program only.
    """
    task, variant = config.task, config.variant
    ours = task in tasks.BUILT_IN and variant in rivals.BUILT_IN
    return ours and (
        TASKS.get(task) is tasks.BUILT_IN[task]
        and VARIANTS.get(variant) is rivals.BUILT_IN[variant]
    )


def training_command(config: TrainingConfig) -> str | None:
    """The command line that trains a configuration, or ``None`` if none does.

    Of a path to the user's own data it has the last part only. No command line trains a task or a
    variant of the user's own; nor a configuration with ``None`` or ``False`` where the task's quick
    settings have a value, such as a limit: an option can change a setting, but not remove it.
    """
    if not known_to_commands(config):
        return None
    quick = TASKS[config.task].quick()
    quick = quick.for_variant(config.variant).replace(variant=quick.variant)
    words = ["python", "-m", "mlx_tlstm.train", config.task]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == getattr(quick, field.name):
            continue
        if value is None or value is False:
            return None
        option = "--" + field.name.replace("_", "-")
        if field.name == "data":
            value = Path(value).name
        words += [option] if value is True else [option, str(value)]
    return shlex.join(words)

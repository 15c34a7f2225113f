"""The model of a training run, and where it comes from."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_tlstm.checks import require, require_choice
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.files import load_arrays, read_json, require_like
from mlx_tlstm.metadata import ModelMetadata, metrics_from_json
from mlx_tlstm.model import SequenceModel, class_count
from mlx_tlstm.paths import to_path
from mlx_tlstm.runs import CONFIG_FILE, SYMBOLS_FILE, TEST_FILE, WEIGHTS, RunFolder
from mlx_tlstm.tasks import TASKS, Task, make_task, remembered_data
from mlx_tlstm.variants import make_layer


def load_run_model(path: str | Path, weights: str = "best") -> SequenceModel:
    """The model of a run in evaluation mode, with its metadata; the task's data is not needed.

    Args:
        path: The run's folder.
        weights: ``"best"`` or ``"last"``.

    Raises:
        ValueError: The folder holds no run, or a file is missing, damaged or does not fit.
    """
    require_choice("load", "weights", weights, WEIGHTS)
    run = RunFolder.open(path)
    config = run.config
    require_choice("load", "task", config.task, TASKS)
    file = run.weights_file(weights)
    arrays = load_arrays(file, "load")
    # The task alone knows these two; the others have to be the configuration's.
    input_size = _matrix(arrays, "layer.cell.input_projection.weight", file).shape[1]
    output_size = _matrix(arrays, "readout.weight", file).shape[0]
    layer = make_layer(
        config.variant,
        input_size,
        config.hidden_size,
        config.depth,
        kernel_size=config.kernel_size,
        recompute=config.recompute,
    )
    model = SequenceModel(layer, output_size)
    model.set_dtype(getattr(mx, config.dtype))
    expected = dict(tree_flatten(model.parameters()))
    require_like("load", str(file), arrays, expected, CONFIG_FILE)
    model.load_weights(list(arrays.items()))
    symbols = run.read_symbols()
    if symbols is not None:
        expected = f"{output_size} symbols, the classes of {file.name},"
        require(len(symbols) == output_size, "load", SYMBOLS_FILE, expected, len(symbols))
    model.metadata = ModelMetadata(
        config.task,
        config.variant,
        _metrics(run, weights),
        training_command(config),
        symbols,
        config,
    )
    return model.eval()


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
    sizes = (model.layer.cell.input_size, class_count(model))
    expected = f"the one that the model was trained on, with {sizes} inputs and classes,"
    found = (task.input_size, task.output_size)
    require(found == sizes, "task_of", "data", expected, found)
    same = model.metadata.symbols in (None, task.symbols)
    require(same, "task_of", "data", "of the symbols that the model knows", task.symbols)
    return task


def training_command(config: TrainingConfig) -> str | None:
    """The command line that trains a configuration; of the user's own data only the name.

    ``None`` where no command line does: it cannot take back a limit that the task's settings have.
    """
    quick = TASKS[config.task].quick()
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


def _matrix(arrays: Mapping[str, mx.array], name: str, file: Path) -> mx.array:
    """The array ``name`` of a file; ``ValueError`` where it is none or no matrix."""
    array = arrays.get(name)
    valid = array is not None and array.ndim == 2
    require(valid, "load", f"{file}: {name}", "a matrix", getattr(array, "shape", None))
    return array


def _metrics(run: RunFolder, weights: str) -> dict[str, Any]:
    """The best weights' figures on the test split; else what the weights' evaluation found."""
    test = run.path / TEST_FILE
    if weights == "best" and test.is_file():
        values = read_json(test, "load")
        require(isinstance(values, dict), "load", str(test), "a JSON object", values)
        values = {name: value for name, value in values.items() if name != "weights"}
        return {"split": "test"} | metrics_from_json(values)
    metric = TASKS[run.config.task].metric
    records = run.read_metrics("evaluation_loss", metric)
    if not records:
        return {}
    pick = {"accuracy": max, "bpc": min}[metric]
    record = records[-1] if weights == "last" else pick(records, key=lambda r: r[metric])
    names = ("split", "samples", metric, "sequence_accuracy")
    return {"loss": record["evaluation_loss"]} | {n: record[n] for n in names if n in record}

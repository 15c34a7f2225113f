"""A model as a folder: ``config.json``, which rebuilds it, and ``model.safetensors``.

The weights' file holds the model's metrics too, in its header, so that one rename replaces both.
Reading one runs no code: JSON and safetensors hold numbers, strings and arrays only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm import layers
from mlx_tlstm.checks import dtype_name, require, require_choice, require_integer, require_keys
from mlx_tlstm.files import TEMPORARY, json_text, naming, parse_json, read_json, sync, to_path
from mlx_tlstm.layers.base import DTYPES
from mlx_tlstm.layers.layer import Layer
from mlx_tlstm.layers.variants import make_layer
from mlx_tlstm.models.arrays import load_arrays, require_like, save_arrays
from mlx_tlstm.models.metadata import ModelMetadata, metrics_from_json

#: Version of the format; a reader refuses those it does not know.
FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
#: The entry of the weights' header that holds the metrics, as JSON.
METRICS = "metrics"
#: What a killed process may leave in an empty folder, which stays one.
_LEFTOVER = f"{TEMPORARY}model"
#: Threads save one after the other: two to one path would write the same files.
_SAVING = threading.Lock()

_SIZES = ("input_size", "hidden_size", "recompute")
_TENSOR = (*_SIZES, "tensor_size", "kernel_size")
#: Layers by name, and the arguments that rebuild them; the others set starting weights only, or
#: belong to the machine.
_LAYERS: dict[str, tuple[Callable[..., Layer], tuple[str, ...]]] = {
    "TLSTM": (layers.TLSTM, (*_TENSOR, "memory_convolution", "norm")),
    "TRNN": (layers.TRNN, _TENSOR),
    "StackedLSTM": (layers.StackedLSTM, (*_SIZES, "depth")),
    "Recurrent": (make_layer, (*_SIZES, "depth", "variant")),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What rebuilds a :class:`mlx_tlstm.SequenceModel` around its weights.

    Args:
        layer: Name of the layer's class.
        arguments: The arguments of its constructor that decide what it computes.
        output_size: S, number of classes.
        dtype: Type of the weights.
        metadata: Where the model comes from.

    Raises:
        ValueError: An argument is unknown, missing or of a wrong type.
    """

    layer: str
    arguments: Mapping[str, Any]
    output_size: int
    dtype: str
    metadata: ModelMetadata = dataclasses.field(default_factory=ModelMetadata)

    def __post_init__(self) -> None:
        owner = type(self).__name__
        require_choice(owner, "layer", self.layer, _LAYERS)
        names = _LAYERS[self.layer][1]
        require_keys(owner, "arguments", self.arguments, names, required=names)
        output_size = require_integer(owner, "output_size", self.output_size)
        object.__setattr__(self, "output_size", output_size)
        require_choice(owner, "dtype", self.dtype, DTYPES)
        symbols = self.metadata.symbols
        fits = symbols is None or len(symbols) == self.output_size
        require(fits, owner, "symbols", f"output_size {self.output_size} of them", symbols)

    @classmethod
    def of(cls, model: nn.Module, metadata: ModelMetadata) -> ModelConfig:
        """The configuration of a model.

        Args:
            model: A model with a ``layer`` and a ``readout``.
            metadata: Where it comes from.

        Raises:
            ValueError: A part is of a class that the configuration cannot name, such as one of the
                user's own, or the weights are not all of one type.
        """
        owner, layer = type(model).__name__, model.layer
        name = type(layer).__name__
        known = name in _LAYERS and type(layer) is getattr(layers, name)
        plain = known and type(model.readout) is nn.Linear
        parts = (name, type(model.readout).__name__)
        dtypes = {dtype_name(array.dtype) for _, array in tree_flatten(model.parameters())}
        with _advising():
            require(
                plain, owner, "save", f"of a model of one of {', '.join(_LAYERS)} and Linear", parts
            )
            if isinstance(layer, layers.Recurrent):
                expected = "one that make_layer made of a CellVariant, and so can make again,"
                cell = f"a Recurrent of {type(layer.cell).__name__}"
                require(layer.made_by is not None, owner, "layer", expected, cell)
            require(len(dtypes) == 1, owner, "dtype", "the same for all weights", sorted(dtypes))
            require_choice(owner, "dtype", *dtypes, DTYPES)
        size = model.readout.weight.shape[0]
        return cls(name, layer.arguments(), size, dtypes.pop(), metadata)

    def build_layer(self) -> Layer:
        """A layer with starting weights.

        Raises:
            ValueError: An argument is out of range, or ``VARIANTS`` lacks the user's cell.
        """
        return _LAYERS[self.layer][0](**self.arguments)

    def as_json(self) -> dict[str, Any]:
        """All of it, fit for JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"format": FORMAT} | values | {"metadata": self.metadata.as_json()}

    @classmethod
    def from_json(cls, values: object) -> ModelConfig:
        """The reverse of :meth:`as_json`; unknown and missing keys are a ``ValueError``."""
        names = ["format", *(field.name for field in dataclasses.fields(cls))]
        require_keys(cls.__name__, "config", values, names, required=names)
        values = dict(values)
        require_choice(cls.__name__, "format", values.pop("format"), (FORMAT,))
        return cls(**values | {"metadata": ModelMetadata.from_json(values["metadata"])})


def require_same_parts(model: nn.Module, built: nn.Module) -> None:
    """Raise ``ValueError`` unless ``built`` with the weights of ``model`` would be the same model.

    Args:
        model: What is to be saved.
        built: What loading would build.
    """
    modules = dict(model.named_modules())
    with _advising():
        for name, module in built.named_modules():
            # A subclass of the model itself is its own affair.
            same = not name or type(modules.get(name)) is type(module)
            found = type(modules[name]).__name__ if name in modules else "no module"
            require(same, "save", name, f"a {type(module).__name__}, as {CONFIG_FILE} says,", found)
        found, expected = (dict(tree_flatten(m.parameters())) for m in (model, built))
        require_like("save", "weights", found, expected, CONFIG_FILE)
        found, expected = map(_unsaved_arrays, (model, built))
        for name, array in expected.items():
            require(
                name in found and _equal(found[name], array),
                "save",
                name,
                "the same array whenever its module is made, since no file keeps it (what is "
                "random needs a key of its own, as mx.random.key(0)),",
                "one that differs",
            )


def _unsaved_arrays(model: nn.Module) -> dict[str, mx.array | np.ndarray]:
    """Arrays of modules that are no parameters: under a name with a _, or NumPy's."""
    return {
        f"{name}.{path}".lstrip("."): array
        for name, module in model.named_modules()
        for key, value in [*module.items(), *vars(module).items()]
        if key.startswith("_") or isinstance(value, np.ndarray)
        for path, array in tree_flatten({key: value})
        if isinstance(array, (mx.array, np.ndarray))
    }


def _equal(one: mx.array | np.ndarray, other: mx.array | np.ndarray) -> bool:
    if type(one) is not type(other) or one.dtype != other.dtype:
        return False
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    return bool(mx.array_equal(one, other, equal_nan=mx.issubdtype(one.dtype, mx.inexact)))


@contextlib.contextmanager
def _advising() -> Iterator[None]:
    """Let an error say what to do with a model that a saved folder cannot hold."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"{error}; nothing was written, since 'load' would refuse it: save_weights(FILE) keeps "
            "the weights, for load_weights(FILE) on a model that you build alike"
        ) from None


def require_unused(path: str | Path) -> Path:
    """Where :func:`write_folder` can save; ``ValueError`` if ``path`` is no new or empty folder."""
    path = Path(os.path.realpath(to_path("save", "path", path)))
    empty = path.is_dir() and {p.name for p in path.iterdir()} <= {_LEFTOVER}
    unused = empty or not path.exists()
    require(unused, "save", "path", "a new folder, or an empty one,", str(path))
    return path


def write_folder(path: str | Path, config: ModelConfig, parameters: Mapping[str, mx.array]) -> None:
    """Save a model as a new folder, or in an empty one. If that fails, no file of it is there.

    Raises:
        ValueError: ``path`` exists and is not an empty folder.
        OSError: It cannot be written.
    """
    with _SAVING:
        path = require_unused(path)
        inside = path.exists()
        # A folder that is there is not replaced: it may be a mount point, or one's current folder.
        temporary = path / _LEFTOVER if inside else path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            with naming(path):
                temporary.mkdir(parents=True, exist_ok=inside)
                write_weights(temporary / WEIGHTS_FILE, parameters, config.metadata.metrics)
                write_config(temporary / CONFIG_FILE, config)
                for file in (WEIGHTS_FILE, CONFIG_FILE, "."):
                    sync(temporary / file)
                if inside:
                    for name in (WEIGHTS_FILE, CONFIG_FILE):
                        os.replace(temporary / name, path / name)
                    sync(path)
                else:
                    os.replace(temporary, path)
                    sync(path.parent)
        except BaseException:
            if inside:
                for name in (WEIGHTS_FILE, CONFIG_FILE):
                    (path / name).unlink(missing_ok=True)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_config(file: Path, config: ModelConfig) -> None:
    """Write the ``config.json`` of a model's folder."""
    file.write_text(json_text(config.as_json(), indent=2))


def write_weights(
    file: Path, parameters: Mapping[str, mx.array], metrics: Mapping[str, Any]
) -> None:
    """Write the ``model.safetensors`` of a model's folder."""
    save_arrays(file, parameters, {"format": "mlx", METRICS: json_text(metrics).strip()})


def read_config(file: Path) -> ModelConfig:
    """Read the ``config.json`` of a model's folder.

    Raises:
        ValueError: The file is damaged, or of another format.
    """
    values = read_json(file, "load")
    try:
        return ModelConfig.from_json(values)
    except ValueError as error:
        raise ValueError(f"[load] '{file}' is no model's: {error}") from error


def read_folder(path: str | Path) -> tuple[ModelConfig, dict[str, mx.array]]:
    """Read a model's folder: its configuration, with the metrics, and its weights by name.

    Raises:
        ValueError: A file is missing or damaged, or of another format.
    """
    path = to_path("load", "path", path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        require((path / name).is_file(), "load", "path", f"a folder that holds {name}", str(path))
    config = read_config(path / CONFIG_FILE)
    arrays, header = load_arrays(path / WEIGHTS_FILE, "load")
    source = f"{path / WEIGHTS_FILE}: {METRICS}"
    metrics = parse_json(header.get(METRICS, "{}"), source, "load")
    valid = isinstance(metrics, dict)
    valid = valid and not any(isinstance(value, (dict, list)) for value in metrics.values())
    require(valid, "load", source, "numbers and words by name", metrics)
    metadata = dataclasses.replace(config.metadata, metrics=metrics_from_json(metrics))
    return dataclasses.replace(config, metadata=metadata), arrays

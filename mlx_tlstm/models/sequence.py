"""A layer with a read-out: logits for every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm.checks import require, require_integer
from mlx_tlstm.files import to_path
from mlx_tlstm.layers.layer import LAYERS, Layer
from mlx_tlstm.models.arrays import filled, require_like
from mlx_tlstm.models.folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    ModelConfig,
    read_folder,
    require_same_parts,
    write_folder,
)
from mlx_tlstm.models.metadata import ModelMetadata
from mlx_tlstm.recurrence.random_state import current_key, random_key

#: Seeds the weights of a second build of a model: what differs from the first is drawn at random,
#: and a folder could not give it back.
_OTHER_SEED = 0x10AD_5AFE


class SequenceModel(nn.Module):
    """A recurrent layer and the linear read-out h W^y + b^y (Eq. 8, 23), before the softmax.

    ``readout`` and ``layer.cell.input_projection`` may be replaced by any modules of the same
    widths: with LoRA, quantized, without a bias, or a network.

    Args:
        layer: A :class:`TLSTM`, :class:`TRNN`, :class:`StackedLSTM`, or a cell of your own in a
            :class:`Recurrent`.
        output_size: S, number of classes.

    Attributes:
        metadata: Where the model comes from; saved with it. Of a model that was loaded, metrics and
            command are left out once its weights have changed, unless you set ``metadata`` anew.

    Raises:
        ValueError: ``layer`` is no layer, or ``output_size`` is no positive integer.
    """

    def __init__(self, layer: Layer, output_size: int) -> None:
        super().__init__()
        valid = isinstance(layer, Layer)
        require(valid, "SequenceModel", "layer", LAYERS, layer)
        output_size = require_integer("SequenceModel", "output_size", output_size)
        self.layer = layer
        self.readout = nn.Linear(layer.hidden_size, output_size)
        self.metadata = ModelMetadata()
        self._origin: _Origin | None = None

    @property
    def causal(self) -> bool:
        """Whether no output depends on a later input; layer normalisation breaks it if L > 1."""
        return self.layer.causal

    def __call__(self, x: mx.array, state: Any = None) -> tuple[mx.array, Any]:
        """Logits ``[B, T, S]`` of inputs ``[B, T, R]``, and the state after them.

        ``logits[:, t]`` answers ``x[:, :t+1]``; see :meth:`RecurrentLayer.__call__`.
        """
        y, state = self.layer(x, state)
        if type(self.readout) is nn.Linear:
            width = self.readout.weight.shape[1]
            expected = f"one whose outputs are as wide as the read-out's inputs ({width})"
            require(y.shape[-1] == width, type(self).__name__, "layer", expected, y.shape[-1])
        return self.readout(y), state

    def save(self, path: str | Path, metadata: ModelMetadata | None = None) -> None:
        """Save the model as a new folder, for :meth:`load` and :func:`mlx_tlstm.load`.

        Args:
            path: The folder. It gets ``config.json`` and ``model.safetensors``, both or, after an
                error, neither.
            metadata: What to save instead of the attribute :attr:`metadata`.

        Raises:
            ValueError: ``path`` exists and is no empty folder, or :meth:`load` would build
                another model: the cell is your own, a part was added or replaced, as by LoRA or
                quantization, the weights differ in type, or a subclass has its own ``__call__``.
                ``save_weights`` keeps the weights of any model.
            OSError: The folder cannot be written.
        """
        config = loadable_config(self, metadata)
        write_folder(path, config, dict(tree_flatten(self.parameters())))

    @classmethod
    def load(cls, path: str | Path) -> SequenceModel:
        """The model in a folder that :meth:`save` wrote, in evaluation mode.

        Its outputs are those of the saved model bit for bit. No code is run.

        Raises:
            ValueError: A file is missing or damaged, or does not fit the other.
        """
        path = to_path("load", "path", path)
        config, arrays = read_folder(path)
        model = _built(cls, config, current_key())
        expected = dict(tree_flatten(model.parameters()))
        require_like("load", str(path / WEIGHTS_FILE), arrays, expected, CONFIG_FILE)
        model.update(filled(model.parameters(), arrays))
        keep_origin(model, config.metadata)
        return model.eval()


def loadable_config(model: SequenceModel, metadata: ModelMetadata | None = None) -> ModelConfig:
    """What a model's folder says of it, with its own metadata unless others are given.

    Raises:
        ValueError: :meth:`SequenceModel.load` could not rebuild the model by it.
    """
    require_model("save", model)
    metadata = _true_metadata(model) if metadata is None else metadata
    require(isinstance(metadata, ModelMetadata), "save", "metadata", "a ModelMetadata", metadata)
    config = ModelConfig.of(model, metadata)
    # From another key than the model's own, as it will be where it is loaded.
    require_same_parts(model, _built(SequenceModel, config, mx.random.key(_OTHER_SEED)))
    return config


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Metadata, and the weights that its figures were measured with."""

    metadata: ModelMetadata
    weights: Mapping[str, mx.array]


def keep_origin(model: SequenceModel, metadata: ModelMetadata) -> None:
    """Give a model the metadata of its weights, whose figures are not those of later weights."""
    model.metadata = metadata
    # Arrays of their own, which share the memory: x[0] = 1 changes x itself.
    weights = {name: mx.stop_gradient(array) for name, array in tree_flatten(model.parameters())}
    mx.eval(weights)
    model._origin = _Origin(metadata, weights)


def _true_metadata(model: SequenceModel) -> ModelMetadata:
    """A model's metadata, without metrics and command if they are those of other weights."""
    origin, now = model._origin, dict(tree_flatten(model.parameters()))
    if origin is None or origin.metadata is not model.metadata:  # or the user's own
        return model.metadata
    same = now.keys() == origin.weights.keys() and all(
        array.dtype == now[name].dtype and mx.array_equal(array, now[name], equal_nan=True)
        for name, array in origin.weights.items()
    )
    changes = {} if same else {"metrics": {}, "command": None}
    return dataclasses.replace(origin.metadata, **changes)


def require_model(owner: str, model: object) -> None:
    """Raise ``ValueError`` unless ``model`` is a :class:`SequenceModel` with its ``__call__``.

    What takes its parts, layer and read-out, would pass over another one without a word.
    """
    name = type(model).__name__
    require(isinstance(model, SequenceModel), owner, "model", "a SequenceModel", model)
    if type(model).__call__ is not SequenceModel.__call__:
        raise ValueError(
            f"[{owner}] 'model' must be a SequenceModel with the __call__ of that class but got "
            f"{name}, whose own would be passed over; calling it and save_weights work, and "
            "'readout' and 'layer.cell.input_projection' may be modules of your own"
        )


def class_count(model: SequenceModel) -> int:
    """S, number of classes: the width of what ``readout`` makes, whatever module it is."""
    if type(model.readout) is nn.Linear:
        return model.readout.weight.shape[0]
    layer = model.layer
    # Never evaluated: only its shape is asked for.
    return model.readout(mx.zeros((1, 1, layer.hidden_size), layer.dtype)).shape[-1]


def _built(kind: type[SequenceModel], config: ModelConfig, key: mx.array) -> SequenceModel:
    """The model that a record describes, before its weights are loaded.

    Its starting weights, drawn from ``key``, take no numbers from ``mx.random``'s global state.
    """
    with random_key(key):
        model = kind(config.build_layer(), config.output_size)
    model.set_dtype(getattr(mx, config.dtype))
    return model

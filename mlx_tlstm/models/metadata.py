"""Where a model comes from: task, settings, metrics; saved with the model and shown on its card."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mlx_tlstm.checks import is_integer, plain, require, require_keys
from mlx_tlstm.config import TrainingConfig


def symbols_from_json(values: object) -> bytes:
    """The byte value of each symbol, from the list of numbers that JSON has for it.

    Raises:
        ValueError: They are something else, or not distinct.
    """
    valid = isinstance(values, list)
    valid = valid and all(is_integer(value) and 0 <= value < 256 for value in values)
    require(valid, "metadata", "symbols", "a list of numbers from 0 to 255", values)
    return require_symbols(bytes(values))


def require_symbols(symbols: object) -> bytes:
    """Return ``symbols``; ``ValueError`` unless they are one or more distinct bytes."""
    distinct = isinstance(symbols, bytes) and 0 < len(symbols) == len(set(symbols))
    require(distinct, "metadata", "symbols", "distinct bytes", symbols)
    return symbols  # type: ignore[return-value]


def metrics_from_json(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by name: JSON's ``null`` is a number that was not finite, and becomes NaN."""
    return {name: math.nan if value is None else value for name, value in metrics.items()}


@dataclasses.dataclass(frozen=True)
class ModelMetadata:
    """Where a model comes from; all of it is optional.

    Args:
        task: Name of the task it was trained on.
        variant: Name of its layer in :data:`mlx_tlstm.VARIANTS`.
        metrics: Figures by name: numbers, or words such as the name of the split. They are saved
            in the same file as the weights. A number that is not finite is saved as ``null``, and
            read as NaN.
        command: The command line that trains it.
        symbols: The byte value of each symbol, for a language model.
        training: The settings that it was trained with. Of a path to the user's own data only the
            last part is saved.

    Raises:
        ValueError: An argument is of a wrong type.
    """

    task: str | None = None
    variant: str | None = None
    metrics: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    command: str | None = None
    symbols: bytes | None = None
    training: TrainingConfig | None = None

    def __post_init__(self) -> None:
        owner = type(self).__name__
        for name in ("task", "variant", "command"):
            value = getattr(self, name)
            require(value is None or isinstance(value, str), owner, name, "a string", value)
        valid = isinstance(self.metrics, Mapping)
        valid = valid and all(isinstance(name, str) for name in self.metrics)
        metrics = {name: plain(value) for name, value in self.metrics.items()} if valid else {}
        valid = valid and all(isinstance(value, (int, float, str)) for value in metrics.values())
        require(valid, owner, "metrics", "numbers and words by name", self.metrics)
        object.__setattr__(self, "metrics", metrics)
        if self.symbols is not None:
            require_symbols(self.symbols)
        valid = self.training is None or isinstance(self.training, TrainingConfig)
        require(valid, owner, "training", "a TrainingConfig", self.training)

    def as_json(self) -> dict[str, Any]:
        """The known fields but the metrics, as values for JSON; symbols are a list of numbers."""
        values = dataclasses.asdict(self) | {"symbols": self.symbols and list(self.symbols)}
        values["training"] = self.training and self.training.without_folder()
        return {name: value for name, value in values.items() if value and name != "metrics"}

    @classmethod
    def from_json(cls, values: object) -> ModelMetadata:
        """The reverse of :meth:`as_json`; unknown keys are a ``ValueError``."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "metrics"]
        require_keys(cls.__name__, "metadata", values, names)
        values = dict(values)  # type: ignore[call-overload]
        if values.get("symbols") is not None:
            values["symbols"] = symbols_from_json(values["symbols"])
        if values.get("training") is not None:
            values["training"] = TrainingConfig.from_json(values["training"], "training")
        return cls(**values)

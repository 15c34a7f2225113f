"""Where a model comes from: the record that is saved, and shown, beside its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mlx_tlstm.checks import is_integer, require, require_keys


@dataclasses.dataclass(frozen=True)
class ModelMetadata:
    """Where a model comes from; all of it is optional.

    Args:
        task: Name of the task it was trained on.
        variant: Name of its layer in :data:`mlx_tlstm.VARIANTS`.
        metrics: Its figures by name: numbers, or words such as the split's.
        command: The command line that trains it.
        symbols: Of a language model, the byte value of each symbol.

    Raises:
        ValueError: An argument is of another kind.
    """

    task: str | None = None
    variant: str | None = None
    metrics: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    command: str | None = None
    symbols: bytes | None = None

    def __post_init__(self) -> None:
        owner = type(self).__name__
        for name in ("task", "variant", "command"):
            value = getattr(self, name)
            require(value is None or isinstance(value, str), owner, name, "a string", value)
        valid = isinstance(self.metrics, Mapping) and all(
            isinstance(name, str) and isinstance(value, (int, float, str))
            for name, value in self.metrics.items()
        )
        require(valid, owner, "metrics", "numbers and words by name", self.metrics)
        symbols = self.symbols
        distinct = isinstance(symbols, bytes) and 0 < len(symbols) == len(set(symbols))
        require(symbols is None or distinct, owner, "symbols", "distinct bytes", symbols)

    def as_json(self) -> dict[str, Any]:
        """What is known, fit for JSON; symbols as a list of numbers."""
        values = dataclasses.asdict(self) | {"symbols": self.symbols and list(self.symbols)}
        return {name: value for name, value in values.items() if value}

    @classmethod
    def from_json(cls, values: object) -> ModelMetadata:
        """The reverse of :meth:`as_json`; unknown keys are a ``ValueError``."""
        names = [field.name for field in dataclasses.fields(cls)]
        require_keys(cls.__name__, "metadata", values, names)
        symbols = values.get("symbols")
        if symbols is not None:
            valid = isinstance(symbols, list)
            valid = valid and all(is_integer(value) and 0 <= value < 256 for value in symbols)
            require(valid, cls.__name__, "symbols", "a list of numbers from 0 to 255", symbols)
            values = values | {"symbols": bytes(symbols)}
        return cls(**values)

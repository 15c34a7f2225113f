"""The options of ``mlx-tlstm train``: one for each field of TrainingConfig."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import click

from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.config import BY_LAG, TrainingConfig
from mlx_tlstm.layers.variants import VARIANTS


class NumberOrLag(click.ParamType):
    """A number, or the word ``lag``, with which the task decides."""

    name = f"float|{BY_LAG}"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float | str:
        try:
            return value if value == BY_LAG else float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number or {BY_LAG!r}", parameter, context)


#: What a command line knows better than the field.
_OWN = {
    "variant": {
        "type": click.Choice(list(VARIANTS)),
        "metavar": "NAME",
        "help": f"Network: {', '.join(VARIANTS)}. 2d has one tensor axis, 3d two; +cn and +ln are "
        "channel and layer normalisation, -m is without memory convolution, -f without feedback.",
    },
    "forget_bias": {"type": NumberOrLag(), "metavar": f"FLOAT|{BY_LAG}"},
    "data": {"type": UserPath()},
}


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a click command; one that is not given is ``None``."""
    fields = {field.name: field for field in dataclasses.fields(TrainingConfig)}
    del fields["task"]
    # In the order of the documentation, which `python -OO` leaves out.
    texts = _descriptions()
    names = [name for name in dict.fromkeys([*texts, *fields]) if name in fields]
    for name in reversed(names):
        kind = fields[name].metadata["kind"]
        settings = {
            "type": click.Choice(kind) if isinstance(kind, tuple) else kind,
            "is_flag": kind is bool,
            "default": None,
            "help": texts.get(name),
        }
        command = click.option(_option(name), name, **settings | _OWN.get(name, {}))(command)
    return command


def _descriptions() -> dict[str, str]:
    """What the documentation of :class:`TrainingConfig` says of each field, for a terminal."""
    text = inspect.cleandoc(TrainingConfig.__doc__ or "")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    names = {name for name, _ in entries}

    def plain(match: re.Match[str]) -> str:
        return _option(match[1]) if match[1] in names else match[1]

    return {name: " ".join(re.sub('``"?(.*?)"?``', plain, text).split()) for name, text in entries}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")

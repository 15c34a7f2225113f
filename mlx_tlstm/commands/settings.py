"""Options that are fields of TrainingConfig: of ``mlx-tlstm train``, and some of ``data``."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import click

from mlx_tlstm.commands.paths import UserPath
from mlx_tlstm.config import BY_LAG, TrainingConfig
from mlx_tlstm.layers.variants import VARIANTS
from mlx_tlstm.rivals import RIVALS
from mlx_tlstm.tasks import TASKS


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
        "channel and layer normalisation, -m is without memory convolution, -f without feedback. "
        f"From {next(iter(RIVALS))} on they are others', with the clipping, forget bias and depth "
        "that their own papers name, in place of the defaults here.",
    },
    "forget_bias": {"type": NumberOrLag(), "metavar": f"FLOAT|{BY_LAG}"},
    "data": {"type": UserPath()},
}


def setting_options(*chosen: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of these fields, or of all, to a click command.

    What a command line leaves out is ``None``; the help tells the defaults that tasks share.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(_options(chosen)):
            command = option(command)
        return command

    return add


def _options(chosen: Sequence[str]) -> list[Callable[..., Any]]:
    found: list[Callable[..., Any]] = []
    fields = {field.name: field for field in dataclasses.fields(TrainingConfig)}
    del fields["task"]
    # In the order of the documentation, which `python -OO` leaves out.
    texts, everywhere = _descriptions(), _everywhere()
    for name in chosen or [name for name in dict.fromkeys([*texts, *fields]) if name in fields]:
        kind = fields[name].metadata["kind"]
        settings = {
            "type": click.Choice(kind) if isinstance(kind, tuple) else kind,
            "is_flag": kind is bool,
            "default": None,
            "help": texts.get(name),
        }
        settings |= _OWN.get(name, {})
        if kind is not bool and everywhere.get(name) is not None:
            settings["help"] = f"{settings['help'] or ''}  [default: {everywhere[name]}]"
        found.append(click.option(_option(name), name, **settings))
    return found


def laptop_settings() -> str:
    """The options that tell one task's settings for a laptop from another's."""
    lines, everywhere = ["\b"], _everywhere()  # \b: click leaves the lines as they are
    for name, task in TASKS.items():
        settings = {k: v for k, v in vars(task.quick()).items() if v is not None and k != "task"}
        words = " ".join(f"{_option(k)}={v}" for k, v in settings.items() if k not in everywhere)
        lines.append(f"{name}:")
        lines.append(textwrap.indent(textwrap.fill(words, 72, break_on_hyphens=False), "  "))
    return "\n".join(lines)


def _everywhere() -> dict[str, Any]:
    """Settings that all tasks have in common, for a laptop and at the paper's size."""
    known = [vars(c) for task in TASKS.values() for c in (task.quick(), task.paper())]
    return {k: v for k, v in known[0].items() if all(each[k] == v for each in known)}


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

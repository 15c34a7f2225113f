"""``mlx-tlstm generate``: text from a language model."""

from __future__ import annotations

import codecs
import os
import sys
import time

import click

from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.commands.loading import load_model, model_options
from mlx_tlstm.models.generation import Vocabulary
from mlx_tlstm.models.generation import generate as generate_symbols


@click.command(cls=Command)
@click.option(
    "--prompt",
    help="Text to go on from; by default a line's end or, if the model's text has none, a space, "
    "else the first byte that may begin a character.",
)
@click.option("--length", default=500, show_default=True, help="Bytes to generate.")
@click.option(
    "--temperature",
    default=1.0,
    show_default=True,
    help="Below 1 likely bytes become likelier; 0 always takes the likeliest.",
)
@click.option(
    "--top-p",
    default=1.0,
    show_default=True,
    help="Draw only from the likeliest bytes, which together have this share of the probability.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="Seed of the draws: the same seed gives the same text.",
)
@model_options
@click.option(
    "--raw",
    is_flag=True,
    help="Print bytes as they are, for texts that are not UTF-8.",
)
def generate(
    model: str,
    prompt: str | None,
    length: int,
    temperature: float,
    top_p: float,
    seed: int,
    weights: str,
    backend: str | None,
    raw: bool,
) -> None:
    """Go on from a prompt with text from a language model, and print it while it is generated.

    MODEL is the folder of a run on wikipedia or of a saved model, or a repository of the Hugging
    Face hub.
    """
    with clean_errors(bad_input=True):
        network = load_model(model, weights, backend)
        symbols = network.metadata.symbols
        if symbols is None:
            raise ValueError(
                f"[generate] 'MODEL' must be a language model's but {model!r} knows no bytes "
                f"(task {network.metadata.task})"
            )
        vocabulary = Vocabulary(symbols)
        start = vocabulary.start if prompt is None else os.fsencode(prompt)
        prompt_symbols = vocabulary.encode(start)
        text = generate_symbols(network, prompt_symbols, length, temperature, top_p, seed)
    if not network.causal:
        click.echo(
            "Warning: the model's layer normalisation let later characters leak into its training, "
            "and here there are none: the text is worse than its figures.",
            err=True,
        )
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def show(data: bytes, final: bool = False) -> None:
        if raw:
            sys.stdout.write_bytes(data)
        else:
            click.echo(decoder.decode(data, final), nl=final)

    show(start)
    moments = [time.perf_counter()]
    for symbol in text:
        show(vocabulary.decode(symbol))
        moments.append(time.perf_counter())
    show(b"", final=True)
    click.echo(_cost(moments, network.layer.delay, len(start)), err=True)


def _cost(moments: list[float], delay: int, prompt: int) -> str:
    """What the generation of a text took, as a line; ``moments`` are its start and each byte's."""
    start, *later = moments
    steps = (
        f"each costs {delay + 1} steps: its own and {delay} to flush" if delay else "one step each"
    )
    if len(later) < 2:
        return f"bytes: {len(later)}; {steps}"
    each = (later[-1] - later[0]) / (len(later) - 1)
    return (
        f"{len(later)} bytes, {1e3 * each:.2f} ms each ({1e3 * each / (delay + 1):.2f} ms a step), "
        f"the first {1e3 * (later[0] - start):.1f} ms after a prompt of {prompt}; {steps}"
    )

"""``mlx-tlstm generate``: text from a language model."""

from __future__ import annotations

import codecs
import os
import time
from pathlib import Path

import click

from mlx_tlstm import hub
from mlx_tlstm.commands.errors import clean_errors
from mlx_tlstm.generation import Vocabulary
from mlx_tlstm.generation import generate as generate_symbols
from mlx_tlstm.model import SequenceModel
from mlx_tlstm.runs import WEIGHTS
from mlx_tlstm.saving import is_saved_model
from mlx_tlstm.trained import run_symbols


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--prompt", default="\n", help="Text to go on from; else a line's end.")
@click.option("--length", default=500, show_default=True, help="Bytes to generate.")
@click.option(
    "--temperature", default=1.0, show_default=True, help="Below 1 safer; 0 takes the likeliest."
)
@click.option(
    "--top-p",
    default=1.0,
    show_default=True,
    help="Draw from the likeliest bytes that have this share of the probability.",
)
@click.option("--seed", default=0, show_default=True, help="Another seed, another text.")
@click.option("--weights", type=click.Choice(WEIGHTS), default=WEIGHTS[0], help="Of a run.")
def generate(
    model: str,
    prompt: str,
    length: int,
    temperature: float,
    top_p: float,
    seed: int,
    weights: str,
) -> None:
    """Print a text that goes on from a prompt, as it comes.

    MODEL is the folder of a run on wikipedia, a saved model's, or a repository of the Hugging Face
    hub.
    """
    with clean_errors(bad_input=True):
        network = hub.load(model, weights)
        vocabulary = Vocabulary(_symbols(model, network))
        start = os.fsencode(prompt)
        symbols = vocabulary.encode(start)
        text = generate_symbols(network, symbols, length, temperature, top_p, seed)
    if not network.causal:
        click.echo(
            "Warning: the model's layer normalisation let later characters leak into its training, "
            "and here there are none: the text is worse than its figures.",
            err=True,
        )
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    click.echo(decoder.decode(start), nl=False)
    moments = [time.perf_counter()]
    with clean_errors(bad_input=False):
        for symbol in text:
            click.echo(decoder.decode(vocabulary.decode(symbol)), nl=False)
            moments.append(time.perf_counter())
    click.echo(decoder.decode(b"", final=True))
    click.echo(_cost(moments, network.layer.delay, len(symbols)), err=True)


def _symbols(path: str, model: SequenceModel) -> bytes:
    """The byte value of each symbol of a language model.

    Raises:
        ValueError: The model is none, or its run's data is another than it was.
    """
    symbols = model.metadata.symbols
    classes = model.readout.weight.shape[0]
    if symbols is None and Path(path).is_dir() and not is_saved_model(path):
        symbols = run_symbols(path)
    if symbols is None:
        raise ValueError(
            f"[generate] 'MODEL' must be a language model's but {path!r} knows no bytes "
            f"(task {model.metadata.task})"
        )
    if len(symbols) != classes:
        raise ValueError(
            f"[generate] the data of {path!r} must hold {classes} distinct bytes, as when it was "
            f"trained, but holds {len(symbols)}"
        )
    return symbols


def _cost(moments: list[float], delay: int, prompt: int) -> str:
    """What a text took, from the moments of its start and of each byte."""
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

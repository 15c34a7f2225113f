"""Text from a trained language model, symbol by symbol."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import mlx.core as mx

from mlx_tlstm.checks import (
    as_integers,
    is_integer,
    is_number,
    plain,
    require,
    require_integer,
    shown,
)
from mlx_tlstm.models.sequence import SequenceModel, class_count, require_model
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.recurrence.random_state import current_key, random_key
from mlx_tlstm.recurrence.snapshot import require_evaluated, snapshot

#: Symbols of the prompt that are read at a time, which bounds the graph of a long one.
_PROMPT_CHUNK = 128
#: Float32 holds it; below it two different logits are as far apart as they can be.
_LOWEST_TEMPERATURE = 1e-30


class Vocabulary:
    """The bytes that a language model knows, and their symbols.

    Args:
        symbols: The byte value of each symbol.
    """

    def __init__(self, symbols: bytes) -> None:
        self._bytes = symbols
        self._numbers = {value: number for number, value in enumerate(symbols)}

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def start(self) -> bytes:
        """The byte after which a text without a prompt begins.

        It is a line's end, since a line begins after it. Where the model knows none it is a
        space, since a word begins after it, or else the first byte that can begin a UTF-8
        character.
        """
        usual = (value for value in b"\n " if value in self._numbers)
        first = min(self._bytes, key=lambda value: (0x80 <= value < 0xC0, value))
        return bytes([next(usual, first)])

    def encode(self, text: bytes) -> list[int]:
        """Symbols of a text.

        Raises:
            ValueError: The text is empty, or holds a byte that the model does not know.
        """
        require(len(text) > 0, "generate", "prompt", "a byte or more", text)
        unknown = bytes(sorted(set(text) - self._numbers.keys()))
        expected = f"made of the {len(self)} bytes that the model knows"
        if unknown:
            raise ValueError(
                f"[generate] 'prompt' must be {expected} but got {shown(text)}, with {unknown!r}"
            )
        return [self._numbers[value] for value in text]

    def decode(self, symbol: int) -> bytes:
        """The byte of a symbol."""
        return self._bytes[symbol : symbol + 1]


def generate(
    model: SequenceModel,
    prompt: Sequence[int],
    length: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Continue a prompt: yield symbols, each drawn from the probabilities that the model gives it.

    The output of a deep tLSTM is ``delay`` steps late, so that after each symbol the layer has to
    be flushed before the next can be drawn: on a side branch, whose state is thrown away. A symbol
    costs 1 + ``delay`` = L steps. Its probabilities are those of a run over the prompt and all
    symbols so far.

    Each symbol may be asked for in another thread. Weights that change after the call have no
    effect.

    Args:
        model: A model whose inputs are one-hot symbols and whose classes are the same symbols.
        prompt: Symbols to begin with, one or more.
        length: Number of symbols to generate.
        temperature: Divides the logits; 0 takes the likeliest symbol.
        top_p: Draw from the fewest symbols whose probabilities add up to this share, in (0, 1].
        seed: Seeds the draws, and those of the layer if it has any, 0 … 2^64 - 1; they take no
            numbers from ``mx.random``'s global state.

    Raises:
        ValueError: An argument is out of range, or another thread built the model's weights and
            has not evaluated them; raised by the call, before any symbol.
        FloatingPointError: The logits of the next symbol are no numbers; raised in its place.
    """
    owner = "generate"
    require_model(owner, model)
    classes, inputs = class_count(model), model.layer.input_size
    same = inputs in (None, classes)
    require(same, owner, "model", f"one of as many classes as inputs ({inputs})", classes)
    symbols = as_integers(prompt)
    valid = bool(symbols) and min(symbols) >= 0 and max(symbols) < classes
    require(valid, owner, "prompt", f"symbols from 0 to {classes - 1}, one or more,", prompt)
    length = require_integer(owner, "length", length, minimum=0)
    temperature, top_p, seed = map(plain, (temperature, top_p, seed))
    valid = is_number(temperature) and temperature >= 0
    require(valid, owner, "temperature", "a finite number of 0 or more", temperature)
    valid = is_number(top_p) and 0 < top_p <= 1
    require(valid, owner, "top_p", "above 0 and at most 1", top_p)
    valid = is_integer(seed) and 0 <= seed < 1 << 64
    require(valid, owner, "seed", "an integer from 0 to 2^64 - 1", seed)
    model = snapshot(model)
    require_evaluated(owner, model)
    # Evaluated here too: the first symbol may be asked for in another thread.
    rows, key = mx.eye(classes), mx.random.key(seed)
    layer_key = mx.random.split(key, 3)[2]  # one that no symbol is drawn from
    mx.eval(rows, key, layer_key)
    return _generate(model, list(symbols), length, temperature, top_p, rows, key, layer_key)


def _generate(
    model: SequenceModel,
    symbols: list[int],
    length: int,
    temperature: float,
    top_p: float,
    rows: mx.array,
    key: mx.array,
    layer_key: mx.array,
) -> Iterator[int]:
    state = None
    *before, last = symbols
    for start in range(0, len(before), _PROMPT_CHUNK):
        chunk = rows[mx.array(before[start : start + _PROMPT_CHUNK])]
        with random_key(layer_key):
            _, state = model.layer.stream(chunk, state)
            layer_key = current_key()
        mx.eval(state, layer_key)
    # One input, then the flush; the state is the one before the flush.
    step = CompiledFunction(model, SequenceModel.__call__)
    for _ in range(length):
        with random_key(layer_key):
            logits, state = step(rows[last][None], state)
            layer_key = current_key()
        logits = logits[-1].astype(mx.float32)
        key, draw = mx.random.split(key)
        symbol = sample(logits, temperature, top_p, draw)
        number = mx.isfinite(mx.logsumexp(logits))  # -inf is a symbol that never comes
        mx.eval(symbol, number, key, state, layer_key)
        if not number.item():
            raise FloatingPointError(f"[generate] the model's logits are {logits.tolist()}")
        last = symbol.item()
        yield last


def sample(logits: mx.array, temperature: float, top_p: float, key: mx.array) -> mx.array:
    """A symbol drawn from ``logits [S]``; arguments as in :func:`generate`."""
    if temperature == 0:
        return mx.argmax(logits)
    # From the largest on, so that a tiny temperature makes the others -inf and none NaN.
    logits = (logits - mx.max(logits)) / max(temperature, _LOWEST_TEMPERATURE)
    if top_p < 1:
        order = mx.argsort(-logits)
        probabilities = mx.softmax(logits[order])
        # Those before a symbol fall short of the share: the likeliest is always in.
        inside = mx.cumsum(probabilities) - probabilities < top_p
        return order[mx.random.categorical(mx.where(inside, logits[order], -math.inf), key=key)]
    return mx.random.categorical(logits, key=key)

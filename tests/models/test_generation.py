"""Generated text is what the model gives when it reads all of it anew."""

from __future__ import annotations

import math
import os
import re
import sys

import mlx.core as mx
import pytest
from click.testing import CliRunner
from layer_helpers import OUR_VARIANTS

import mlx_tlstm
from mlx_tlstm import ModelMetadata, SequenceModel, make_layer, training
from mlx_tlstm.commands import generation as command
from mlx_tlstm.commands.main import main
from mlx_tlstm.models import generation
from mlx_tlstm.models.generation import Vocabulary, generate, sample
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.tasks import TASKS

SYMBOLS = 11
PROMPT = [3, 0, 7, 7, 10]


def build(variant="2d-tlstm+cn", depth=4, classes=SYMBOLS, dtype="float32"):
    mx.random.seed(8)
    model = SequenceModel(make_layer(variant, classes, 8, depth), classes)
    # Lively, and with logits far apart, so that no rounding changes which is the largest.
    cell = model.layer.cell
    cell.weight, cell.input_projection.weight = 4 * cell.weight, 5 * cell.input_projection.weight
    model.readout.weight = 30 * model.readout.weight
    model.set_dtype(getattr(mx, dtype))
    return model.eval()


def from_scratch(model, symbols):
    """Logits after a whole sequence."""
    return model(mx.eye(model.layer.cell.input_size)[mx.array(symbols)])[0][-1]


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("variant", OUR_VARIANTS)
def test_likeliest_symbols_are_those_of_a_run_from_scratch(variant, depth, monkeypatch):
    monkeypatch.setattr(generation, "_PROMPT_CHUNK", 3)
    model = build(variant, depth)
    found = list(generate(model, PROMPT, 12, temperature=0))
    assert len(found) == 12
    symbols = list(PROMPT)
    for symbol in found:
        logits = from_scratch(model, symbols)
        first, second = mx.sort(logits)[-1:-3:-1].tolist()
        assert first - second > 1e-4
        assert symbol == mx.argmax(logits).item()
        symbols.append(symbol)
    assert len(set(found)) > 1


def test_drawn_symbols_are_those_of_a_run_from_scratch():
    model = build(dtype="bfloat16")
    found = list(generate(model, PROMPT, 20, temperature=0.7, top_p=0.9, seed=5))
    key, symbols = mx.random.key(5), list(PROMPT)
    for symbol in found:
        key, draw = mx.random.split(key)
        logits = from_scratch(model, symbols).astype(mx.float32)
        assert symbol == sample(logits, 0.7, 0.9, draw).item()
        symbols.append(symbol)
    assert found != list(generate(model, PROMPT, 20, temperature=0))


def test_seeds():
    model = build()
    before = mx.random.state[0].tolist()
    first, again = (list(generate(model, PROMPT, 30, seed=1)) for _ in range(2))
    assert first == again
    assert first != list(generate(model, PROMPT, 30, seed=2))
    assert first[:10] == list(generate(model, PROMPT, 10, seed=1))
    assert mx.random.state[0].tolist() == before
    assert list(generate(model, PROMPT, 0)) == []


def test_weights_that_change_meanwhile_have_no_effect():
    """A model in training can be sampled from."""
    model = build()
    expected = list(generate(model, PROMPT, 10, temperature=0))
    symbols = generate(model, PROMPT, 10, temperature=0)
    found = [next(symbols), next(symbols)]
    model.readout.weight = -model.readout.weight
    assert found + list(symbols) == expected != list(generate(model, PROMPT, 10, temperature=0))


@pytest.mark.parametrize(("variant", "delay"), [("2d-tlstm", 3), ("3d-tlstm", 3), ("slstm", 0)])
def test_a_symbol_costs_one_step_and_the_flush(variant, delay, monkeypatch):
    model = build(variant)
    traced, calls = [], []
    layer = type(model.layer)
    prepare, call = layer._prepare, CompiledFunction.__call__

    def tracing(self, *arguments):
        projected, *rest = prepare(self, *arguments)
        traced.append(projected.shape[0])
        return projected, *rest

    def counting(function, *arguments):
        calls.append(arguments[0].shape[0])
        return call(function, *arguments)

    monkeypatch.setattr(layer, "_prepare", tracing)
    monkeypatch.setattr(CompiledFunction, "__call__", counting)
    list(generate(model, PROMPT, 6))
    assert traced == [len(PROMPT) - 1, 1 + delay]
    assert calls == [1] * 6


LOGITS = mx.array([0.5, -1.0, 2.0, 1.0, -3.0])


def shares(temperature, top_p, draws=4000):
    keys = mx.random.split(mx.random.key(0), draws)
    found = mx.vmap(lambda key: sample(LOGITS, temperature, top_p, key))(keys)
    return mx.array([(found == symbol).mean().item() for symbol in range(5)])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_sampling_follows_the_softmax(temperature):
    # 4 deviations of a share of 4,000 draws.
    assert mx.allclose(shares(temperature, 1.0), mx.softmax(LOGITS / temperature), atol=0.032)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.99, [0, 1, 2, 3]), (0.9, [0, 2, 3]), (0.7, [2, 3]), (0.5, [2])]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    probabilities = mx.softmax(LOGITS)
    assert probabilities[mx.array(kept)].sum().item() >= top_p
    assert probabilities[mx.array(kept)].sum().item() - probabilities[mx.array(kept)].min() < top_p
    inside = mx.zeros(5).at[mx.array(kept)].add(1)
    expected = probabilities * inside / (probabilities * inside).sum()
    found = shares(1.0, top_p)
    assert [symbol for symbol in range(5) if found[symbol].item() > 0] == kept
    assert mx.allclose(found, expected, atol=0.032)


@pytest.mark.parametrize("temperature", [0, 1e-320, 1e-38, 1e-5])
def test_a_low_temperature_takes_the_likeliest(temperature):
    for top_p in (1.0, 0.3):
        assert sample(LOGITS, temperature, top_p, mx.random.key(1)).item() == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, r"'prompt' must be symbols from 0 to 10, one or more, but got \[\]"),
        ({"prompt": [11]}, r"'prompt' must be symbols from 0 to 10"),
        ({"prompt": [-1]}, r"'prompt' must be symbols from 0 to 10"),
        ({"length": -1}, "'length' must be an integer of 0 or more"),
        ({"temperature": -0.1}, "'temperature' must be a finite number of 0 or more"),
        ({"temperature": float("nan")}, "'temperature' must be a finite number"),
        ({"top_p": 0}, "'top_p' must be above 0 and at most 1 but got 0"),
        ({"top_p": 1.1}, "'top_p' must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "'top_p' must be above 0 and at most 1"),
        ({"seed": -1}, r"'seed' must be an integer from 0 to 2\^64 - 1 but got -1"),
        ({"seed": 2**64}, r"'seed' must be an integer from 0 to 2\^64 - 1"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(**{"model": build(), "prompt": PROMPT, "length": 3} | arguments)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(temperature):
    model = build()
    model.readout.bias = mx.array([math.nan] + [0.0] * 10)
    with pytest.raises(FloatingPointError, match=r"the model's logits are .*nan"):
        next(generate(model, PROMPT, 3, temperature))
    model.readout.bias = mx.array([-math.inf] * 10 + [0.0])  # all but one never come
    assert list(generate(model, PROMPT, 3, temperature)) == [10] * 3


def test_a_model_of_another_kind():
    model = SequenceModel(make_layer("2d-tlstm", 5, 8, 2), 4)
    with pytest.raises(ValueError, match=r"'model' must be one of as many classes as inputs \(5\)"):
        generate(model, [0], 1)


def test_vocabulary():
    vocabulary = Vocabulary(b"\nab\xff")
    assert vocabulary.encode(b"b\xffa") == [2, 3, 1]
    assert vocabulary.decode(3) == b"\xff"
    with pytest.raises(ValueError, match=r"made of the 4 bytes that .* got b'abcc', with b'c'"):
        vocabulary.encode(b"abcc")
    with pytest.raises(ValueError, match="'prompt' must be a byte or more but got b''"):
        vocabulary.encode(b"")


@pytest.mark.parametrize(
    ("symbols", "start"),
    [
        (b"\n ab", b"\n"),
        (b" ab", b" "),
        (b"ACGT", b"A"),
        (bytes(sorted(set("漢字中文".encode()))), b"\xe4"),
        (b"\x80\xa0", b"\x80"),
        (b"\x00\xff", b"\x00"),
        (b"ba", b"a"),
    ],
)
def test_a_text_may_begin_after_a_byte_that_every_model_knows(symbols, start):
    vocabulary = Vocabulary(symbols)
    assert vocabulary.start == start
    assert vocabulary.encode(vocabulary.start)


TEXT = "Größe: a tensor of cells\n" * 40
TINY = {"length": 5, "depth": 3, "hidden_size": 8, "batch_size": 4, "eval_every": 40, "samples": 40}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generation")
    (folder / "text").write_text(TEXT)
    config = TASKS["wikipedia"].quick().replace(**TINY, data=str(folder / "text"))
    training.fit(config, folder / "run")
    return folder / "run"


def invoke(*arguments):
    return CliRunner().invoke(main, ["generate", *map(str, arguments)])


def test_command(run):
    result = invoke(run, "--prompt", "tensor ö", "--length", 40, "--temperature", 0)
    assert result.exit_code == 0, result.output
    vocabulary = Vocabulary(bytes(sorted(set(TEXT.encode()))))
    prompt = "tensor ö".encode()
    symbols = generate(mlx_tlstm.load(run), vocabulary.encode(prompt), 40, temperature=0)
    text = prompt + b"".join(vocabulary.decode(symbol) for symbol in symbols)
    assert result.stdout == text.decode(errors="replace") + "\n"
    assert re.fullmatch(
        r"40 bytes, [\d.]+ ms each \([\d.]+ ms a step\), the first [\d.]+ ms after a prompt of 9; "
        r"each costs 3 steps: its own and 2 to flush",
        result.stderr.strip(),
    )
    drawn = invoke(run, "--prompt", "tensor ö", "--length", 40, "--temperature", 2).stdout
    assert drawn != result.stdout
    other = invoke(run, "--prompt", "tensor ö", "--length", 40, "--temperature", 2, "--seed", 1)
    assert other.stdout != drawn
    safer = invoke(run, "--length", 40, "--temperature", 2, "--top-p", 1e-6).stdout
    assert safer == invoke(run, "--length", 40, "--temperature", 0).stdout
    assert (
        invoke(run, "--length", 1).stderr
        == "bytes: 1; each costs 3 steps: its own and 2 to flush\n"
    )


def test_text_comes_as_it_is_drawn(run, monkeypatch):
    """Each byte is out before the next is asked for; a character when it is whole."""
    vocabulary = Vocabulary(bytes(sorted(set(TEXT.encode()))))
    seen = []

    def slow(*_):
        for symbol in vocabulary.encode("tö\n".encode() + b"\xc3"):
            seen.append(sys.stdout.buffer.getvalue().decode())
            yield symbol

    monkeypatch.setattr(command, "generate_symbols", slow)
    result = invoke(run, "--prompt", "a")
    assert seen == ["a", "at", "at", "atö", "atö\n"]
    assert result.stdout == "atö\n\ufffd\n"


@pytest.mark.parametrize("text", ["a tensor of cells and ", "ä"])
def test_a_text_without_line_ends(text, tmp_path):
    (tmp_path / "text").write_text(text * 400)
    config = TASKS["wikipedia"].quick().replace(**TINY, data=str(tmp_path / "text"))
    training.fit(config, tmp_path / "run")
    result = invoke(tmp_path / "run", "--length", 9)
    assert result.exit_code == 0, result.output
    first = " " if " " in text else text[0].encode()[:1].decode(errors="replace")
    assert result.stdout.rstrip("\n")[0] in (first, text[0])


def test_raw_bytes(tmp_path):
    text = "Größe für Ärger\n".encode("latin-1") * 60
    (tmp_path / "text").write_bytes(text)
    config = TASKS["wikipedia"].quick().replace(**TINY, data=str(tmp_path / "text"))
    training.fit(config, tmp_path / "run")
    arguments = (tmp_path / "run", "--length", 40, "--prompt", os.fsdecode(b"\xf6"))
    raw = invoke(*arguments, "--raw").stdout_bytes
    assert raw[:1] == b"\xf6"
    assert len(raw) == 41
    assert set(raw) <= set(text)
    assert invoke(*arguments).stdout_bytes == raw.decode(errors="replace").encode() + b"\n"


def test_saved_models(run, tmp_path):
    expected = invoke(run, "--length", 20).stdout
    model = mlx_tlstm.load(run)
    model.save(tmp_path / "bare", ModelMetadata())
    result = invoke(tmp_path / "bare")
    assert result.exit_code == 2
    assert "must be a language model's" in result.stderr
    model.save(tmp_path / "model")
    assert invoke(tmp_path / "model", "--length", 20).stdout == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a~"], r"'prompt' must be made of the \d+ bytes .* with b'~'"),
        (["--prompt", ""], "'prompt' must be a byte or more"),
        (["--top-p", "0"], "'top_p' must be above 0"),
        (["--length", "x"], "'x' is not a valid integer"),
        (["--weights", "first"], "'first' is not one of 'best', 'last'"),
    ],
)
def test_command_refusals(arguments, message, run):
    result = invoke(run, *arguments)
    assert result.exit_code == 2
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert re.search(message, line)
    assert not result.stdout


def test_no_language_model(tmp_path):
    config = TASKS["addition"].quick().replace(**TINY)
    training.fit(config, tmp_path / "run")
    result = invoke(tmp_path / "run")
    assert result.exit_code == 2
    assert "must be a language model's" in result.stderr
    assert "task addition" in result.stderr


def test_layer_normalization_is_warned_of(tmp_path):
    mx.random.seed(4)
    model = SequenceModel(make_layer("2d-tlstm+ln", 3, 8, 2), 3)
    model.save(tmp_path / "deep", ModelMetadata(symbols=b"\nab"))
    result = invoke(tmp_path / "deep", "--length", 3)
    assert result.stderr.startswith("Warning: the model's layer normalisation")
    shallow = SequenceModel(make_layer("2d-tlstm+ln", 3, 8, 1), 3)
    shallow.save(tmp_path / "shallow", ModelMetadata(symbols=b"\nab"))
    assert "Warning" not in invoke(tmp_path / "shallow", "--length", 3).stderr

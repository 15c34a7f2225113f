"""Compiled functions of a model do what the plain ones do."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import mlx.core as mx
import pytest
from benchmarking.launches import recorded
from comparison import assert_close
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_map

from mlx_tlstm import SequenceModel, make_layer
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.recurrence.snapshot import snapshot

BATCH, STEPS, INPUT, HIDDEN, CLASSES = 2, 5, 4, 7, 3
#: With it the compiled loops of a CPU may round otherwise: a compiler may join a product and a sum.
TOLERANCE = 1e-5


def _model(variant="2d-tlstm+cn", depth=3):
    mx.random.seed(3)
    model = SequenceModel(make_layer(variant, INPUT, HIDDEN, depth), CLASSES)
    mx.eval(model.parameters())
    return model


def _inputs(batch=BATCH, steps=STEPS, seed=0):
    return mx.random.normal((batch, steps, INPUT), key=mx.random.key(seed))


def _gradient(model, x, state, scale):
    model = snapshot(model)

    def loss(x, state, scale):
        y, state = model(x, state)
        return (scale * y.square()).sum(), state

    return nn.value_and_grad(model, loss)(x, state, scale)


@pytest.mark.parametrize(
    "variant", ["2d-tlstm", "2d-tlstm+cn", "3d-tlstm+ln", "2d-tlstm-m", "2d-trnn", "slstm"]
)
@pytest.mark.parametrize("recompute", [False, True])
def test_values_and_gradients(variant, recompute):
    """Without and with a state, at two shapes, and with weights that change in between."""
    model = _model(variant)
    model.layer.cell.recompute = recompute
    plain, compiled = partial(_gradient, model), CompiledFunction(model, _gradient)
    for seed, (batch, steps) in enumerate([(BATCH, STEPS), (BATCH, STEPS), (3, 2)]):
        x, state = _inputs(batch, steps, seed), None
        for scale in (1.0, 2.0):
            expected = plain(x, state, scale)
            found = compiled(x, state, scale)
            assert_close(found, expected, TOLERANCE)
            (_, state), gradients = found
            assert type(state) is model.layer.cell.state_type
            trained = model.trainable_parameters()
            model.update(tree_map(lambda w, d: w - 0.01 * d, trained, gradients))


def test_one_trace_a_shape():
    model = _model()
    traces = []

    def forward(model, x):
        traces.append(x.shape)
        return model(x)[0]

    compiled = CompiledFunction(model, forward)
    for steps in (STEPS, STEPS, 2, STEPS, 2):
        compiled(_inputs(steps=steps))
    assert traces == [(BATCH, STEPS, INPUT), (BATCH, 2, INPUT)]


def test_the_model_keeps_its_own_arrays():
    """A trace's would be refused: they hold nothing."""
    model = _model()
    before = dict(tree_flatten(model.parameters()))
    CompiledFunction(model, _gradient)(_inputs(), None, 1.0)
    after = dict(tree_flatten(model.parameters()))
    assert all(after[name] is array for name, array in before.items())
    failing = CompiledFunction(model, lambda model, x: model(x)[0].reshape(1, 1))
    with pytest.raises(ValueError, match="reshape"):
        failing(_inputs())
    mx.eval(model.parameters())


def _added_dropout(model):
    model.readout = nn.Sequential(nn.Dropout(0.999), model.readout)


class _Scaled(nn.Linear):
    def __call__(self, x):
        return 3 * super().__call__(x)


def _replaced(model):
    """By a module of another type with the same arrays."""
    old, new = model.readout, _Scaled(HIDDEN, CLASSES)
    new.update(old.parameters())
    model.readout = new


CHANGES = {
    "update": lambda model: model.update({"readout": {"bias": mx.full((CLASSES,), 4.0)}}),
    "load_weights": lambda model: model.load_weights(
        list(tree_flatten(tree_map(lambda a: 0.5 * a, model.parameters())))
    ),
    "freeze": lambda model: model.layer.freeze(),
    "freeze a part": lambda model: model.readout.freeze(keys=["weight"]),
    "unfreeze": lambda model: model.freeze().unfreeze(keys=["bias"]),
    "set_dtype": lambda model: model.set_dtype(mx.bfloat16),
    "mode": lambda model: (_added_dropout(model), model.eval()),
    "module": _replaced,
    "array": lambda model: setattr(model.layer.cell, "bias", 2 * model.layer.cell.bias),
    "added module": lambda model: setattr(
        model, "readout", nn.Sequential(model.readout, nn.Tanh())
    ),
    "setting": lambda model: setattr(model.layer.cell, "recompute", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_model_are_seen(change):
    """What a user does to a model between two calls counts in the second."""
    model = _model()
    compiled = CompiledFunction(model, _gradient)
    before = compiled(_inputs(), None, 1.0)
    mx.eval(before)
    CHANGES[change](model)
    found, expected = compiled(_inputs(), None, 1.0), _gradient(model, _inputs(), None, 1.0)
    assert_close(found, expected, 1e-2 if change == "set_dtype" else TOLERANCE)


def test_a_mode_that_changes_to_and_fro():
    model = _model()
    _added_dropout(model)
    compiled = CompiledFunction(model, lambda model, x: model(x)[0])
    for _ in range(2):
        model.eval()
        assert mx.allclose(compiled(_inputs()), model(_inputs())[0], rtol=1e-5, atol=1e-5)
        model.train()
        assert not mx.allclose(compiled(_inputs()), model.eval()(_inputs())[0], atol=1e-3)


def _with_dropout():
    model = _model()
    model.readout = nn.Sequential(nn.Dropout(0.5), model.readout)
    return model


def _draw_of(function, *arguments):
    mx.random.seed(6)
    results = [function(*arguments) for _ in range(3)]
    return results, mx.random.state[0].tolist()


def test_random_numbers_are_those_of_the_plain_function():
    """New ones in each call, from the state of ``mx.random``, which goes on."""
    model = _with_dropout()
    compiled = CompiledFunction(model, _gradient)
    expected, after = _draw_of(partial(_gradient, model), _inputs(), None, 1.0)
    for function in (compiled, compiled, compiled.plain):
        found, now = _draw_of(function, _inputs(), None, 1.0)
        assert_close(found, expected, TOLERANCE)
        assert now == after
    assert len({result[0][0].item() for result in found}) == 3


def test_random_numbers_of_each_shape_and_mode():
    model = _with_dropout()
    compiled = CompiledFunction(model, lambda model, x: model(x)[0])
    for steps in (STEPS, 2, STEPS):
        first, second = compiled(_inputs(steps=steps)), compiled(_inputs(steps=steps))
        assert not mx.array_equal(first, second)
    model.eval()
    _, after = _draw_of(compiled, _inputs())
    assert after == mx.random.key(6).tolist()


def test_random_numbers_in_another_thread():
    """Each has a state of its own."""
    model = _with_dropout()
    compiled = CompiledFunction(model, lambda model, x: model(x)[0])
    x = _inputs()
    mx.eval(x)

    def draws():
        return [array.tolist() for array in _draw_of(compiled, x)[0]]

    here = draws()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(draws).result() == here


def test_without_random_numbers_their_state_stays():
    compiled = CompiledFunction(_model(), _gradient)
    mx.random.seed(6)
    state = mx.random.state[0]
    for _ in range(2):
        compiled(_inputs(), None, 1.0)
    assert mx.random.state[0] is state
    assert state.tolist() == mx.random.key(6).tolist()


def test_tied_modules_stay_tied():
    model = _model()
    twice = nn.Linear(CLASSES, CLASSES)
    model.readout = nn.Sequential(model.readout, twice, nn.Tanh(), twice)
    compiled = CompiledFunction(model, _gradient)
    expected = _gradient(model, _inputs(), None, 1.0)
    assert_close(compiled(_inputs(), None, 1.0), expected, TOLERANCE)


def test_what_fails_for_another_reason_is_no_failed_compilation():
    model = _model()
    failing = CompiledFunction(model, lambda model, x: mx.linalg.inv(mx.zeros((2, 2)) + x.sum()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="factorization failed"):
            mx.eval(failing(mx.zeros((2,))))


def test_a_users_own_compiled_step():
    """MLX's idiom, as `docs/own-code.md` shows it: model and optimiser are inputs and outputs."""

    def train(compile_step):
        model, adam = _model(), optimizers.Adam(1e-2)
        state = [model.state, adam.state]

        def step(x):
            (loss, _), gradients = _gradient(model, x, None, 1.0)
            adam.update(model, gradients)
            return loss

        if compile_step:
            step = partial(mx.compile, inputs=state, outputs=state)(step)
        losses = []
        for seed in range(4):
            losses.append(step(_inputs(seed=seed)))
            mx.eval(state)
        return {"losses": losses, "model": model.parameters()}

    assert_close(train(True), train(False), TOLERANCE)


def test_kernels_are_traced():
    """Their launches look at no value, and happen in the graph; nothing is computed here."""
    with recorded() as launches:
        model = _model()
        _gradient(model, _inputs(), None, 1.0)
        plain = launches.copy()
        launches.clear()
        compiled = CompiledFunction(model, _gradient)
        compiled(_inputs(), None, 1.0)
        assert [launch.name for launch in launches] == [launch.name for launch in plain]
        compiled(_inputs(seed=1), None, 1.0)
        assert len(launches) == len(plain) > 4 * STEPS


PROGRAM = """
import mlx_tlstm
import mlx.core as mx
from mlx_tlstm import SequenceModel, make_layer
from mlx_tlstm.recurrence.compilation import CompiledFunction

model = SequenceModel(make_layer("2d-tlstm+cn", 3, 5, 2), 2)
x = mx.ones((2, 4, 3))
compiled = CompiledFunction(model, lambda model, x: model(x)[0])
for _ in range(2):
    print(mx.abs(compiled(x) - model(x)[0]).max().item() < 1e-5)
"""


def _start(**environment):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


needs_compiler = pytest.mark.skipif(
    subprocess.run("g++ --version", shell=True, capture_output=True).returncode != 0,
    reason="MLX compiles for a CPU where there is g++",
)


@needs_compiler
def test_processes_that_compile_at_once(tmp_path):
    processes = [_start(TMPDIR=str(tmp_path)) for _ in range(2)]
    for process in processes:
        output, errors = process.communicate()
        assert (output, errors) == ("True\nTrue\n", "")
    assert list(tmp_path.glob("mlx/*/cpu/*.so"))


@needs_compiler
@pytest.mark.parametrize("trouble", ["compiler", "folder"])
def test_goes_on_where_compiling_fails(trouble, tmp_path):
    """A compiler that is there but fails; a folder of compiled files that cannot be made."""
    environment = {"TMPDIR": str(tmp_path)}
    if trouble == "compiler":
        compiler = tmp_path / "g++"
        compiler.write_text('#!/bin/sh\n[ "$1" = --version ]\n')
        compiler.chmod(0o755)
        environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    else:
        (tmp_path / "mlx").write_text("a file where MLX wants a folder")
    output, errors = _start(**environment).communicate()
    assert output == "True\nTrue\n", errors
    assert errors.count("MLX cannot compile for this CPU") == 1

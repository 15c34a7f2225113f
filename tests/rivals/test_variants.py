"""The rivals by their names: trained, saved, streamed and printed as every other variant."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import CASES
from click.testing import CliRunner
from mlx.utils import tree_flatten
from tiny_tasks import Stop, StopAt

import mlx_tlstm
from mlx_tlstm import SequenceModel, StreamingSession, make_layer, training
from mlx_tlstm.commands.training import train
from mlx_tlstm.rivals import RIVALS
from mlx_tlstm.tasks import make_task

every_rival = pytest.mark.parametrize("name", RIVALS)


def model_of(name):
    depth = RIVALS[name].settings.get("depth", 3)
    return SequenceModel(make_layer(name, 4, 6, depth), 5)


def test_each_has_a_name():
    assert {name: variant.cell for name, variant in RIVALS.items()} == {
        name: case.cell for name, case in CASES.items()
    }


def test_settings_that_their_papers_name():
    assert {name: variant.settings for name, variant in RIVALS.items()} == {
        "stacked-lstm": {},
        "grid-lstm": {},
        "lstm": {"depth": 1, "forget_bias": 1.0, "clip_norm": 0.0, "clip_value": 1.0},
        "irnn": {"depth": 1, "clip_norm": 1.0},
        "dilated-gru": {"clip_norm": 0.0},
        "mlstm": {"depth": 1, "forget_bias": 3.0, "clip_norm": 0.0},
        "rhn": {"clip_norm": 10.0},
    }


@every_rival
def test_inputs_start_as_ours_where_no_paper_says_how(name, settings):
    """A symbol picks one row, which is as large as those of our layers' inputs: deviation 1."""
    config = settings("wikipedia", hidden_size=30).for_variant(name)
    task = make_task(config)
    model = training.build_model(config, task)
    mx.random.seed(config.seed)
    own = make_layer(name, task.input_size, 30, config.depth, config.forget_bias)
    started = dict(tree_flatten(model.layer.parameters()))
    as_published = dict(tree_flatten(own.parameters()))
    drawn = [key for key, array in started.items() if not mx.array_equal(array, as_published[key])]
    if name in ("stacked-lstm", "grid-lstm"):
        assert drawn == ["cell.input_weight"]
        count = started[drawn[0]].size  # the deviation's own is 1 / sqrt(2 count)
        assert started[drawn[0]].std().item() == pytest.approx(1, abs=4 / (2 * count) ** 0.5)
    else:
        assert drawn == []


@every_rival
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded(name, dtype, tmp_path):
    model = model_of(name)
    model.set_dtype(getattr(mx, dtype))
    model.save(tmp_path / "model")
    again = mlx_tlstm.load(tmp_path / "model")
    x = mx.random.normal((2, 5, 4))
    assert mx.array_equal(again(x)[0], model.eval()(x)[0])


@every_rival
def test_streamed(name):
    model, x = model_of(name).eval(), mx.random.normal((2, 9, 4))
    session = StreamingSession(model)
    pushed = mx.stack([session.push(x[:, t]) for t in range(9)], axis=1)
    assert mx.allclose(pushed, model(x)[0], atol=1e-6)


@every_rival
@pytest.mark.parametrize("task", ["memorization", "wikipedia"])
def test_goes_on_bit_for_bit(name, task, settings, tmp_path):
    config = settings(task, checkpoint_every=1, checkpoint_seconds=0).for_variant(name)
    whole = training.fit(config, tmp_path / "whole")
    with pytest.raises(Stop):
        training.fit(config, tmp_path / "run", [StopAt(steps=3)])
    assert training.resume(tmp_path / "run").test == whole.test


@every_rival
def test_the_command_takes_them_and_is_the_one_that_a_run_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--hidden-size", 5, "--samples", 30, "--length", 2, "--eval-every", 30]
    arguments = ["memorization", "--variant", name, *options, "--out", "run"]
    result = CliRunner().invoke(train, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    config = mlx_tlstm.load("run").metadata.training
    assert {key: getattr(config, key) for key in RIVALS[name].settings} == RIVALS[name].settings
    command = mlx_tlstm.load("run").metadata.command.split()
    again = CliRunner().invoke(train, [*command[3:], "--out", "again"])
    assert again.exit_code == 0, again.output
    assert mlx_tlstm.load("again").metadata.training == config

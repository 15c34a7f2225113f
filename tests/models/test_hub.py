"""Models pushed to a stand-in for the hub, and loaded from it, by the commands a user runs."""

from __future__ import annotations

import re
import subprocess
import sys

import mlx.core as mx
import pytest
import yaml
from comparison import assert_close
from hub_standin import TOKEN, Hub, Repository
from mlx import nn
from processes import environment
from tiny_tasks import load_run

import mlx_tlstm
from mlx_tlstm import VARIANTS, CellVariant, ModelMetadata, SequenceModel, make_layer, training
from mlx_tlstm.models.card import model_card
from mlx_tlstm.tasks import TASKS

TINY = {"length": 5, "depth": 2, "hidden_size": 8, "batch_size": 4, "eval_every": 40, "samples": 40}
COMMAND = "from mlx_tlstm.commands.main import main; main()"
FILES = {"config.json", "model.safetensors", "README.md"}


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A language model's run."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "secret name").write_text("a tensor of cells\n" * 40)
    config = TASKS["wikipedia"].quick().replace(**TINY, data=str(folder / "secret name"))
    training.fit(config, folder / "run")
    return folder / "run"


@pytest.fixture
def python(hub, tmp_path):
    """Run code in a fresh process: the hub's address is read when its client is imported."""

    def start(*arguments, code=COMMAND, token=TOKEN, endpoint=hub.endpoint, **changes):
        ours = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **({"HF_TOKEN": token} if token else {}),
        }
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=tmp_path,
            env=environment(**ours, **changes),
            capture_output=True,
            text=True,
            timeout=120,
        )

    return start


def test_push_a_run_and_load_it(hub, run, python, tmp_path):
    done = python("push", run, "somebody/tiny", "--license", "mit")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["somebody/tiny"]
    assert repository.private
    assert repository.commits == ["Upload a model of mlx_tlstm"]
    assert done.stdout == f"{hub.endpoint}/somebody/tiny/commit/{repository.sha}\n"
    assert set(repository.files) == FILES
    for content in repository.files.values():
        assert str(run.parent).encode() not in content
    card = repository.files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: mlx-tlstm\n")

    hub.asked.clear()
    done = python("pull", "somebody/tiny", "here")
    assert done.returncode == 0, done.stderr
    assert all(method in ("GET", "HEAD") for method, _ in hub.asked)
    pulled = mlx_tlstm.load(tmp_path / "here")
    expected = load_run(run)[2]
    assert_close(pulled.parameters(), expected.parameters())
    assert pulled.metadata.task == "wikipedia"
    assert pulled.metadata.metrics["bpc"] > 0
    assert pulled.metadata.symbols == bytes(sorted(set(b"a tensor of cells\n")))

    arguments = ("--prompt", "cell", "--length", 30)
    from_hub = python("generate", "somebody/tiny", *arguments)
    assert from_hub.returncode == 0, from_hub.stderr
    hub.asked.clear()
    assert from_hub.stdout == python("generate", run, *arguments).stdout
    assert not hub.asked
    cached = python("generate", "somebody/tiny", *arguments, HF_HUB_OFFLINE="1")
    assert cached.stdout == from_hub.stdout
    assert not hub.asked


PUSH = """
import sys
import mlx_tlstm
model = mlx_tlstm.load(sys.argv[1])
print(mlx_tlstm.push(model, "somebody/model", private=False))
print(mlx_tlstm.push(sys.argv[1], "somebody/model"))
other = mlx_tlstm.load("somebody/model", revision="main")
other.save(sys.argv[2])
"""

PUSH_CHANGED = """
import sys
import mlx_tlstm
model = mlx_tlstm.load(sys.argv[1])
model.readout.bias[0] = 1
mlx_tlstm.push(model, "somebody/changed")
"""


def test_a_changed_model_has_a_card_without_the_old_figures(hub, run, python):
    for code, shown in ((PUSH_CHANGED, False), (PUSH_CHANGED.replace("bias[0] = 1", "bias"), True)):
        done = python(run, code=code)
        assert done.returncode == 0, done.stderr
        card = hub.repositories["somebody/changed"].files["README.md"].decode()
        assert ("mlx_tlstm.train" in card) == ("bpc" in card) == shown


def test_from_python(hub, python, tmp_path):
    model = SequenceModel(make_layer("slstm", 3, 4, 2), 5)
    model.save(tmp_path / "model", ModelMetadata(task="mine", command="python mine.py"))
    done = python(tmp_path / "model", tmp_path / "back", code=PUSH)
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["somebody/model"]
    assert not repository.private
    assert len(repository.commits) == 2
    assert_close(mlx_tlstm.load(tmp_path / "back").parameters(), model.parameters())
    assert "| command | `python mine.py` |" in repository.files["README.md"].decode()
    assert "license" not in repository.files["README.md"].decode()


def test_nothing_is_sent_without_a_login(hub, run, python):
    for token in (None, "hf_another"):
        done = python("push", run, "somebody/tiny", token=token)
        assert done.returncode == 1
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("Error: [hub] cannot push to 'somebody/tiny' (")
        assert "Traceback" not in done.stderr
    assert not hub.repositories
    assert not hub.blobs


LOAD = """
import sys
import mlx_tlstm
for name in sys.argv[1:]:
    repository, _, revision = name.partition("@")
    try:
        mlx_tlstm.load(repository, revision=revision or None)
    except ValueError as error:
        print(error)
    else:
        print("loaded")
"""


def test_what_a_repository_may_hold(hub, python, tmp_path):
    model = SequenceModel(make_layer("2d-tlstm", 3, 4, 2), 5)
    model.save(tmp_path / "model")
    names = ("config.json", "model.safetensors")
    files = {name: (tmp_path / "model" / name).read_bytes() for name in names}
    for name, changed in {
        "more": files | {"model.py": b"raise SystemExit", "pytorch_model.bin": b"x"},
        "none": {},
        "half": {"config.json": files["config.json"]},
        "torn": files | {"model.safetensors": files["model.safetensors"][:-9]},
    }.items():
        hub.repositories[f"some/{name}"] = Repository(private=False)
        hub.repositories[f"some/{name}"].files = changed
    done = python("some/more", "some/none", "some/half", "some/torn", code=LOAD)
    assert done.returncode == 0, done.stderr
    loaded, *refused = done.stdout.splitlines()
    assert loaded == "loaded"
    assert not any("model.py" in path or ".bin" in path for _, path in hub.asked)
    for line, message in zip(
        refused,
        (
            r"'path' must be a folder that holds config\.json",
            r"'path' must be a folder that holds model\.safetensors",
            r"must be a safetensors file but .*invalid data offsets",
        ),
        strict=True,
    ):
        assert re.search(message, line)


def test_absent_repositories(hub, python):
    hub.repositories["some/model"] = Repository(private=False)
    done = python("some/other", "some/model@v2", "../model", "a/b/c", code=LOAD)
    assert done.returncode == 0, done.stderr
    for line, message in zip(
        done.stdout.splitlines(),
        (
            "[load] there is no folder 'some/other', and the hub has no repository 'some/other'",
            "that you may read with the revision 'v2'",
            "[load] there is no folder '../model', nor is that a repository's name",
            "[load] there is no folder 'a/b/c', nor is that a repository's name",
        ),
        strict=True,
    ):
        assert message in line
    done = python("pull", "some/other", "here")
    assert done.returncode == 2
    message = "Error: [hub] the hub has no repository 'some/other' that you may read"
    assert done.stderr.splitlines()[-1] == message


MISTYPED = """
import sys
from pathlib import Path
import mlx_tlstm
for name in (*sys.argv[1:], Path("nobody/good")):
    try:
        mlx_tlstm.load(name)
    except ValueError as error:
        print(error)
"""


def test_mistyped_folders(hub, python, tmp_path):
    """The hub is not asked for what is a path here, though its name looks like a repository's."""
    SequenceModel(make_layer("2d-tlstm", 3, 4, 2), 5).save(tmp_path / "runs" / "good")
    (tmp_path / "a file").write_text("")
    near = "[load] there is no folder '{}' (did you mean '{}'?)"
    expected = {
        "runs/god": near.format("runs/god", "runs/good") + "; since 'runs' is here, the hub",
        "./runs/god": near.format("runs/god", "runs/good") + ", nor is that a repository's",
        "run/good": None,
        "./run/good": near.format("run/good", "runs/good"),
        f"{tmp_path}/runs/god": near.format(tmp_path / "runs/god", tmp_path / "runs/good"),
        "~/god": "[load] there is no folder '/nowhere/god', nor",
        "runs/other": "[load] there is no folder 'runs/other'; since 'runs' is here, the hub",
        "runs/god/": near.format("runs/god", "runs/good"),
        "runs//god": near.format("runs/god", "runs/good"),
        "a/b/c": "[load] there is no folder 'a/b/c', nor",
        "runs": "[load] 'path' must be a folder that holds config.json but got 'runs'",
        "a file": "[load] 'path' must be a folder that holds config.json but got 'a file'",
        "": "[load] 'path_or_repo' must be a path but got ''",
    }
    names = [name for name, message in expected.items() if message]
    done = python(*names, code=MISTYPED, HOME="/nowhere")
    assert done.returncode == 0, done.stderr
    *lines, a_path = done.stdout.splitlines()
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(expected[name])
    assert a_path.startswith("[load] there is no folder 'nobody/good', nor")
    assert not hub.asked
    for command in ("evaluate", "generate", "push"):
        arguments = ["somebody/model"] if command == "push" else []
        done = python(command, "runs/god", *arguments)
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        owner = "push" if command == "push" else "load"
        assert last.startswith(f"Error: [{owner}] there is no folder 'runs/god' (did you mean")
    assert not hub.asked
    done = python("evaluate", "run/good")
    message = "Error: " + near.format("run/good", "runs/good")
    assert done.stderr.splitlines()[-1].startswith(f"{message}, and the hub has no repository")
    assert hub.asked


def test_a_repository_named_like_a_folder_here(hub, python, tmp_path):
    SequenceModel(make_layer("2d-tlstm", 3, 4, 2), 5).save(tmp_path / "some" / "local")
    repository = hub.repositories["some/model"] = Repository(private=False)
    for file in (tmp_path / "some" / "local").iterdir():
        repository.files[file.name] = file.read_bytes()
    done = python("some/model@main", "some/local", "some/model", code=LOAD)
    assert done.stdout.splitlines()[:2] == ["loaded", "loaded"], done.stderr
    assert "'some' is here, the hub was not asked" in done.stdout.splitlines()[2]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    hub.asked.clear()
    done = python("pull", "some/model", "full")
    assert (done.returncode, hub.asked) == (2, [])
    assert "[save] 'path' must be a new folder, or an empty one, but got '" in done.stderr
    assert python("pull", "some/model", "here").returncode == 0
    assert (tmp_path / "here" / "model.safetensors").exists()


def test_what_is_asked_of_what_has_none(tmp_path):
    SequenceModel(make_layer("2d-tlstm", 3, 4, 2), 5).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"'weights' must be 'best' where .* but got 'last'"):
        mlx_tlstm.load(tmp_path / "model", weights="last")
    with pytest.raises(ValueError, match=r"'revision' must be None for a folder but got 'main'"):
        mlx_tlstm.load(tmp_path / "model", revision="main")


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_unreachable_hub(python, run, environment):
    for arguments, failed in (
        (["pull", "some/model", "here"], "[hub] cannot load 'some/model' from the hub"),
        (["push", run, "some/model"], "[hub] cannot push to 'some/model'"),
        (
            ["evaluate", "some/model"],
            "[load] there is no folder 'some/model', and cannot load 'some/model' from the hub",
        ),
    ):
        done = python(*arguments, endpoint="http://127.0.0.1:9", **environment)
        assert done.returncode == 1
        assert f"Error: {failed} (" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_refusal_of_the_hub(hub, python, run):
    """The client's error for it is a ``ValueError`` too, as those of our own checks are."""
    hub.refuses = True
    done = python("push", run, "some/model")
    assert done.returncode == 1
    assert "Error: [hub] cannot push to 'some/model' (BadRequestError: " in done.stderr
    assert "it does not take that" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repo_id": "name"}, "'repo_id' must be a repository 'user/name' but got 'name'"),
        ({"repo_id": 3}, "'repo_id' must be a repository"),
        ({"private": "yes"}, "'private' must be True or False"),
        ({"license": "two words"}, "'license' must be an identifier such as 'mit'"),
        ({"model_or_path": "gone"}, r"\[push\] there is no folder 'gone'"),
    ],
)
def test_refusals_before_anything_is_sent(arguments, message):
    model = SequenceModel(make_layer("slstm", 3, 4, 2), 5)
    with pytest.raises(ValueError, match=message):
        mlx_tlstm.push(**{"model_or_path": model, "repo_id": "a/b"} | arguments)


CARD = """---
library_name: mlx-tlstm
license: cc-by-4.0
pipeline_tag: text-generation
tags:
- mlx
- tensorized-lstm
- wikipedia
- 3d-tlstm+ln
---

# model

A tensorized LSTM for [MLX](https://github.com/ml-explore/mlx), after He et al., *Wider and \
Deeper, Cheaper and Faster: Tensorized LSTMs for Sequence Learning* (NIPS 2017).

| | |
|---|---|
| task | wikipedia |
| variant | 3d-tlstm+ln |
| layer | `TLSTM`, depth L = 2 |
| parameters | 988 (bfloat16) |
| split | test |
| bpc | 1.2346 |
| samples | 40 |
| command | `python -m mlx_tlstm.train wikipedia` |

```python
import mlx_tlstm

model = mlx_tlstm.load("some/model")
logits, state = model(x)  # x [batch, time, 3], logits [batch, time, 3]
```

```sh
python -m mlx_tlstm.generate some/model
```

The model is not causal: its layer normalisation lets later inputs leak into earlier outputs, so \
that its figures are no measure of a language model.
"""


def test_model_card():
    model = SequenceModel(make_layer("3d-tlstm+ln", 3, 4, 2), 3)
    model.set_dtype(mx.bfloat16)
    model.metadata = ModelMetadata(
        "wikipedia",
        "3d-tlstm+ln",
        {"split": "test", "bpc": 1.23456, "samples": 40},
        "python -m mlx_tlstm.train wikipedia",
        b"\nab",
    )
    assert model_card(model, "some/model", "cc-by-4.0") == CARD
    knows_once = SequenceModel(make_layer("2d-tlstm", 4, 4, 2), 4)
    knows_once.metadata = ModelMetadata(symbols=b"Once")
    assert "mlx_tlstm.generate some/model --prompt Once\n" in model_card(knows_once, "some/model")
    model.metadata = ModelMetadata()
    card = model_card(model, "some/model")
    assert "| task | not known |" in card
    assert "| command | not known |" in card
    assert "license" not in card
    assert "pipeline_tag" not in card


@pytest.mark.parametrize(
    ("variant", "network"),
    [
        ("2d-tlstm", "tensorized LSTM"),
        ("2d-trnn", "tensorized RNN"),
        ("slstm", "stacked LSTM"),
        ("rhn", "recurrent network"),
    ],
)
def test_a_card_says_which_network_it_is(variant, network):
    model = SequenceModel(make_layer(variant, 3, 4, 2), 3)
    model.metadata = ModelMetadata("no", variant)
    card = model_card(model, "some/model")
    assert f"\nA {network} for [MLX]" in card
    tags = yaml.safe_load(card.split("---")[1])["tags"]
    assert tags == ["mlx", network.lower().replace(" ", "-"), "no", variant]


def test_the_card_of_anothers_cell(monkeypatch):
    card = model_card(SequenceModel(make_layer("rhn", 3, 4, 2), 3), "some/model")
    assert "A recurrent network for [MLX]" in card
    assert "by `mlx_tlstm.rivals`, which names its paper" in card
    assert "| layer | `RecurrentHighwayCell` in a `Recurrent`, depth L = 2 |" in card
    assert "VARIANTS" not in card
    assert "tensorized" not in card.lower().replace("mlx_tlstm", "")
    monkeypatch.setitem(VARIANTS, "own", CellVariant(Cell))
    card = model_card(SequenceModel(make_layer("own", 3, 4, 1), 3), "some/model")
    assert "mlx_tlstm.VARIANTS['own'] = mlx_tlstm.CellVariant(Cell)" in card
    monkeypatch.setitem(VARIANTS, "own", CellVariant(lambda input_size, hidden_size: Cell(3, 4)))
    card = model_card(SequenceModel(make_layer("own", 3, 4, 1), 3), "some/model")
    assert "mlx_tlstm.VARIANTS['own'] = …  # the CellVariant that the author put there" in card
    assert "that is not part of `mlx_tlstm`" in card
    assert "x [batch, time, 3]" in card


class Cell(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size

    def initial_state(self, batch_size):
        return mx.zeros((batch_size, 4))

    def __call__(self, x, state):
        return state, state

"""README, CONTRIBUTING and docs/ say what is there: code runs; commands, links and files exist."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from processes import ROOT

import mlx_tlstm
from mlx_tlstm.commands.main import main
from mlx_tlstm.models import hub

README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
BESIDE = ["metal/README.md", "notebooks/README.md", "tests/metal_on_cpu/README.md"]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def blocks(path: Path, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    assert found, path
    return found


def prose(path: Path) -> str:
    return re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)


def run(path: Path, names: dict) -> None:
    for block in blocks(path, "python"):
        exec(block, names)


def test_readme_code():
    (block,) = blocks(README, "python")
    assert len(block.splitlines()) <= 12
    names: dict = {}
    run(README, names)
    assert names["y"].shape == (50, 28, 100)
    assert names["logits"].shape == (15, 12, 65)


def test_own_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(mlx_tlstm.VARIANTS, "gru", None)  # what the page puts there goes again
    first, step, *others = blocks(DOCS / "own-code.md", "python")
    names: dict = {}
    exec(first + step, names)
    start = names["loss"].item()
    inputs, targets = mx.random.normal((15, 12, 65)), mx.zeros((15, 12), dtype=mx.int32)
    for _ in range(20):
        last = names["step"](inputs, targets).item()
    assert last < 0.5 * start  # targets that are all the same are soon learnt
    mx.eval(names["state"])
    model, layer, x = (names[name] for name in ("model", "layer", "x"))
    for block in others:
        exec(block, names)
    assert mx.allclose(names["logits"], model(names["example"])[0], atol=1e-6)
    assert mx.allclose(names["y"], layer(x)[0])  # 28 steps are one chunk
    assert type(names["trained"].layer.cell) is names["GRUCell"]


def test_models_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = mlx_tlstm.SequenceModel(mlx_tlstm.make_layer("2d-tlstm", 5, 4, 3), 5)
    model.metadata = mlx_tlstm.ModelMetadata(symbols=b"The x")
    model.save("runs/my-run")
    sent = []
    monkeypatch.setattr(mlx_tlstm, "push", lambda *arguments: sent.append(arguments))
    x = mx.random.normal((2, 6, 5))
    names = {"x": x, "x_t": x[:, 0], "layer": model.layer}
    run(DOCS / "models.md", names)
    assert sent == [("runs/my-run", "user/my-model")]
    assert mx.array_equal(hub.load("my-model")(x)[0], names["logits"])
    assert names["y"] is None  # the first of a deep model
    assert len(names["text"]) == 500
    assert Path("cells.png").stat().st_size > 0


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def commands(path: Path) -> Iterator[list[str]]:
    """Every command of a page that starts something of ours, as words, optional ones among them."""
    text = path.read_text()
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    inline = re.findall(r"`([^`\n]+)`", prose(path))
    for line in [*shell.splitlines(), *inline]:
        for part in re.split(r"&&|\s#\s|\s\|\s", line):
            command = re.sub(r"^(\w+=\S+ )+", "", part.strip())
            if re.match(r"(python3?|mlx-tlstm|pip) ", command):
                yield shlex.split(re.sub(r"[][](?!\S*\")", " ", command))


def known_options(words: list[str]) -> set[str] | None:
    """The options of the command that words start; ``None`` where it is none of ours."""
    if words[0] == "mlx-tlstm":
        command = main.commands[words[1]]
    elif words[1] == "-m":
        module = words[2]
        if not module.startswith("mlx_tlstm."):
            return None
        importlib.import_module(module)
        name = module.rpartition(".")[2]
        command = main.commands["train" if name == "launch" else name]
    else:
        assert (ROOT / words[1]).is_file(), words
        if not words[1].startswith("scripts/"):
            return None
        command = importlib.import_module(Path(words[1]).stem).main
    options = {option for parameter in command.params for option in parameter.opts}
    # mlx.launch has its own, which stand in front.
    launching = {"-n", "--hostfile", "--python", "--backend"}
    return options | {"--help"} | (launching if "mlx_tlstm.launch" in words else set())


@pytest.mark.parametrize("page", NAMES)
def test_commands(page):
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for words in commands(ROOT / page):
        if words[0] == "pip":
            for named in re.findall(r"\[([\w,]+)\]", " ".join(words)):
                assert set(named.split(",")) <= set(extras), words
            continue
        known = known_options(words)
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} - {"-m"}
        assert known is None or given <= known, (words, given - known)


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*NAMES, *BESIDE, "CHANGELOG.md"])
def test_links(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target
        # The site has docs/ alone.
        assert DOCS not in path.parents or DOCS in linked.parents, target


@pytest.mark.parametrize("page", [*NAMES, *BESIDE])
def test_named_files(page):
    """Paths of this repository in a page's text, such as `tests/test_x.py`."""
    folders = r"(?:mlx_tlstm|metal|scripts|tests|docs|notebooks|\.ci|\.github)/"
    for code in re.findall(r"`([^`\n]+)`", prose(ROOT / page)):
        for name in code.split():
            if re.fullmatch(rf"{folders}[\w./*-]*", name):
                assert list(ROOT.glob(name.rstrip("/"))), name


def tree() -> dict[str, list[str]]:
    """Folders of the tree in docs/architecture.md, and the names that it lists in each."""
    (block,) = re.findall(r"^```\n(mlx_tlstm/\n.*?)^```", (DOCS / "architecture.md").read_text(),
                          re.MULTILINE | re.DOTALL)  # fmt: skip
    folders: dict[str, list[str]] = {".": []}
    inside: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        inside = inside[:depth]
        folder = "/".join(inside) or "."
        for name in re.split(r"\s{2,}", line.strip())[0].split(", "):
            folders.setdefault(folder, []).append(name)
        if name.endswith("/"):
            inside.append(name.rstrip("/"))
    return folders


def test_file_tree():
    listed = tree()
    assert {"mlx_tlstm", "mlx_tlstm/training", "scripts"} <= listed.keys()
    for folder, names in listed.items():
        assert len(set(names)) == len(names), folder
        for name in names:
            path = ROOT / folder / name
            assert path.is_dir() if name.endswith("/") else path.is_file(), path
        if folder.split("/")[0] in ("mlx_tlstm", "scripts") or folder == "tests":
            there = {path.name for path in (ROOT / folder).glob("*.py")}
            unnamed = {"conftest.py" if folder == "tests" else "__init__.py"} - set(names)
            unlisted = there - set(names) - unnamed
            assert [name for name in unlisted if not name.startswith("test_")] == []


def test_test_command():
    """What .ci/run takes from the README."""
    text = README.read_text()
    (command,) = re.findall(r"<!-- test command -->\n```sh\n(.*)\n```", text)
    assert command.endswith("&& pytest")
    assert "README.md" in (ROOT / ".ci" / "run").read_text()

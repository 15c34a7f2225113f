"""The package's rooms: imports run one way, the root stays small, and loading it loads little."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from processes import ROOT

import mlx_tlstm
from mlx_tlstm.commands.main import main

PACKAGE = Path(mlx_tlstm.__file__).parent
parsed = functools.cache(ast.parse)
#: Folders and modules of the package from the ground up, as docs/architecture.md has them: each
#: imports from itself and from what stands on lines above its own.
ORDER = (
    ("checks",),
    ("files", "geometry", "streams"),
    ("blas",),
    ("recurrence",),
    ("ops", "reference"),
    ("kernels",),
    ("layers",),
    ("rivals",),
    ("config",),
    ("models",),
    ("__init__",),
    ("tasks",),
    ("training",),
    ("checking",),
    ("visualize",),
    ("commands",),
    ("train", "evaluate", "generate", "data", "check", "launch"),
)
#: What a layer and a model do without.
HEAVY = ("datasets", "PIL", "requests", "aiohttp", "matplotlib", "click", "tqdm", "huggingface_hub")


def sources() -> dict[str, str]:
    """The text of every module, by its name within the package; a folder's is its __init__."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = path.read_text()
    return found


def imports(name: str, text: str, modules: set[str]) -> set[str]:
    """The modules of the package that a module imports, anywhere in it, whichever way it says so.

    Args:
        name: The module's name, as in :func:`sources`.
        text: Its source.
        modules: The names of all modules.
    """
    folder = any(other.startswith(f"{name}.") for other in modules) or name == "__init__"
    absolute = "mlx_tlstm" if name == "__init__" else f"mlx_tlstm.{name}"
    here = absolute if folder else absolute.rpartition(".")[0]
    full: set[str] = set()
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Import):
            full |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(base, here)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                inside = submodule.removeprefix("mlx_tlstm.") in modules
                full.add(submodule if inside else base)
    within = {one for one in full if one == "mlx_tlstm" or one.startswith("mlx_tlstm.")}
    return {"__init__" if one == "mlx_tlstm" else one.removeprefix("mlx_tlstm.") for one in within}


def violations(texts: dict[str, str]) -> list[str]:
    """What is against :data:`ORDER`, in words."""
    ranks = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
    found, modules = [], set(texts)
    for name in sorted(texts):
        room = name.partition(".")[0]
        if room not in ranks:
            found.append(f"{name} is in no room of ORDER")
            continue
        for other in sorted(imports(name, texts[name], modules)):
            theirs = other.partition(".")[0]
            if theirs not in ranks:
                found.append(f"{name} imports {other}, which is in no room of ORDER")
            elif theirs != room and ranks[theirs] >= ranks[room]:
                found.append(f"{name} imports {other}, but {theirs} is not below {room}")
    return found


def test_imports_run_one_way():
    assert violations(sources()) == []


def test_no_modules_import_each_other():
    """Not within a room either. (A folder's __init__ may gather what is in it.)"""
    texts = sources()
    modules = set(texts)
    graphlib.TopologicalSorter(
        {name: imports(name, text, modules) - {name} for name, text in texts.items()}
    ).prepare()  # the error names the modules of a cycle


def test_what_the_scripts_share_imports_one_way():
    files = sorted((ROOT / "scripts" / "benchmarking").glob("*.py"))
    assert files
    for file in files:
        nodes = list(ast.walk(parsed(file.read_text())))
        found = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        found |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        assert "experiments" not in {name.split(".")[0] for name in found}, file.name


def test_nothing_that_comes_before_openblas_loads_mlx():
    """OpenBLAS serves MLX only if it is loaded first."""
    texts, waiting, seen = sources(), ["blas"], set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        nodes = list(ast.walk(parsed(texts[name])))
        external = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        external |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        assert not [one for one in external if one.split(".")[0] == "mlx"], name
        waiting += imports(name, texts[name], set(texts)) - seen
    assert {"blas.wheel", "files", "checks"} <= seen


@pytest.mark.parametrize(
    ("module", "text", "found"),
    [
        ("layers.base", "from mlx_tlstm.tasks import TASKS", "imports tasks, but tasks is not"),
        ("layers.base", "from mlx_tlstm import config", "imports config, but config is not below"),
        ("layers.base", "from mlx_tlstm import SequenceModel", "imports __init__, but __init__"),
        ("layers.base", "import mlx_tlstm.models.hub as hub", "imports models.hub, but models is"),
        ("layers.base", "from ..config import DTYPES", "imports config, but config is not below"),
        ("layers", "from ..config import DTYPES", "imports config, but config is not below layers"),
        ("layers.base", "def f():\n    from mlx_tlstm import training", "imports training, but"),
        ("ops.cpu", "from mlx_tlstm.reference import tanh", "imports reference, but reference is"),
        ("__init__", "from . import visualize", "imports visualize, but visualize is not below"),
        ("helpers", "", "helpers is in no room of ORDER"),
    ],
)
def test_violations_are_named(module, text, found):
    (line,) = violations(sources() | {module: text})
    assert line.startswith(module)
    assert found in line


def test_every_room_is_there():
    rooms = [room for level in ORDER for room in level]
    assert len(rooms) == len(set(rooms))
    assert set(rooms) == {name.partition(".")[0] for name in sources()}


def test_the_root_is_small():
    assert len(list(PACKAGE.glob("*.py"))) <= 13


def fresh(program: str) -> object:
    """What a new process prints as JSON."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_package_loads_no_more_than_models():
    loaded = fresh("import json, sys, mlx_tlstm; print(json.dumps(sorted(sys.modules)))")
    above = [room for rooms in ORDER[ORDER.index(("__init__",)) + 1 :] for room in rooms]
    unwanted = (*HEAVY, *(f"mlx_tlstm.{room}" for room in above))
    assert "mlx_tlstm.models.hub" in loaded
    assert [n for n in loaded if any(n == one or n.startswith(f"{one}.") for one in unwanted)] == []


@pytest.mark.parametrize(
    ("name", "member"),
    [("tasks", "TASKS"), ("training", "fit"), ("visualize", "draw_memory_maps")],
)
def test_other_rooms_are_loaded_on_demand(name, member):
    listed, found = fresh(
        "import json, mlx_tlstm; listed = dir(mlx_tlstm); "
        f"print(json.dumps([listed, hasattr(mlx_tlstm.{name}, {member!r})]))"
    )
    assert found
    assert {name, "TLSTM", "load", "__all__"} <= set(listed)


def test_version(monkeypatch):
    version = importlib.metadata.version("mlx-tlstm")
    assert mlx_tlstm.__version__ == version
    assert CliRunner().invoke(main, ["--version"]).output == f"mlx-tlstm, version {version}\n"

    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert not hasattr(mlx_tlstm, "__version__")
    assert CliRunner().invoke(main, ["--help"]).exit_code == 0


def test_no_other_name_is_there():
    with pytest.raises(AttributeError, match="module 'mlx_tlstm' has no attribute 'trainings'"):
        _ = mlx_tlstm.trainings

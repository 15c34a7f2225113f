"""The package as a dependency: built, installed and used without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from processes import ROOT

pytestmark = pytest.mark.smoke

#: The sizes of a run of ten steps.
TEN_STEPS = {"length": 2, "depth": 2, "hidden-size": 8, "batch-size": 4, "samples": 40}

#: Builds what the kernels are made of, for Metal and for CUDA, and says from where.
KERNELS = """
import json
from pathlib import Path
import mlx_tlstm
from mlx_tlstm.kernels import library
texts = {}
for kernel in library.KERNELS.values():
    library._built(kernel)
    texts[kernel.name] = library.cuda_text(kernel.name)
folder = Path(mlx_tlstm.__file__).parent
sources = [path.stem for path in (folder / "metal").glob("*.metal")]
print(json.dumps({"folder": str(folder), "texts": texts, "sources": sources}))
"""


def run(*command, folder, **settings):
    """What a command prints in ``folder``, which the package is not imported from."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        **settings,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it where nothing else is."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, folder=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation")
    run(*pip, "-w", folder, sdist, folder=folder)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """A new environment's Python: the wheel, and the dependencies that are installed here."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps")
    run(*pip, built[1], folder=environment)
    # Folders that a .pth file names are searched, but not for .pth files, such as the checkout's.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_contents(built):
    command = (
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "mlx_tlstm",
        "metal",
    )
    names = [name for name in run(*command, folder=ROOT).splitlines() if (ROOT / name).exists()]
    assert "metal/geometry.h" in names
    sdist, wheel = built
    with tarfile.open(sdist) as file:
        members = {name.partition("/")[2] for name in file.getnames()}
    beside = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "PKG-INFO", ".gitignore"}
    assert members == {*names, *beside}
    with zipfile.ZipFile(wheel) as file:
        found = {name: file.read(name) for name in file.namelist() if ".dist-info/" not in name}
    expected = {"mlx_tlstm/" + name.removeprefix("mlx_tlstm/"): name for name in names}
    assert found == {name: (ROOT / path).read_bytes() for name, path in expected.items()}


def test_every_kernel_is_built_from_the_wheel(python, tmp_path):
    found = json.loads(run(python, "-c", KERNELS, folder=tmp_path))
    assert Path(found["folder"]).is_relative_to(python.parents[1])
    assert sorted(found["texts"]) == sorted(found["sources"])
    assert all(all(texts) for texts in found["texts"].values())


def test_ten_steps(python, tmp_path):
    options = [text for name, value in TEN_STEPS.items() for text in (f"--{name}", value)]
    command = (python.with_name("mlx-tlstm"), "train", "memorization", "--out", "run", *options)
    assert "40 samples" in run(*command, folder=tmp_path)
    (*_, last) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(last)["step"] == 10
    run(python, "-m", "mlx_tlstm.evaluate", "run", folder=tmp_path)

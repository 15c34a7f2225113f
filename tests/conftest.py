"""OpenBLAS has to be loaded before MLX, which importing the package first does."""

import mlx_tlstm  # noqa: F401, I001
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from kernel_devices import on_cpu, on_gpu
from metal_on_cpu import standin
from processes import CHILDREN
from tiny_tasks import tiny_settings, write_images, write_text

from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.kernels import dispatch, proof, tuning

# Tolerances are those of float32 sums on a CPU; a GPU's matrix products may round to less.
mx.set_default_device(mx.cpu)
_inherited = filter(None, [os.environ.get("PYTHONPATH")])
os.environ["PYTHONPATH"] = os.pathsep.join([str(CHILDREN), *_inherited])

# Under nohup it is ignored, here and in what the tests start, which are to see a closed terminal.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainingConfig]:
    """Tiny settings of any task, ``settings(task, **changes)``, with data that nobody changes."""
    text = write_text(tmp_path_factory.mktemp("text") / "text")
    return tiny_settings(text, write_images(tmp_path_factory.mktemp("mnist")))


@pytest.fixture(scope="session")
def data_options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of the scripts that name tiny stand-ins."""
    text = write_text(tmp_path_factory.mktemp("text") / "text")
    text.write_bytes(text.read_bytes() * 10)
    images = write_images(tmp_path_factory.mktemp("images"))
    return ["--wikipedia-data", str(text), "--mnist-data", str(images)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder beside the current one, which is empty."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    return home


@pytest.fixture
def stored_tiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the winners among tiles are stored and looked up; nothing is there."""
    path = tmp_path / "winners" / "tuning.json"
    monkeypatch.setenv(tuning.ENVIRONMENT_VARIABLE, str(path))
    return path


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("metal", marks=pytest.mark.metal),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ]
)
def kernel_calls(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[standin.Call]]:
    """Kernels run: sanitizing on the CPU by default, on a GPU with -m metal or -m cuda.

    The value is the list of launches, which stays empty on a GPU. The kernels run without a proof,
    which would launch them too, unless a test brings its own. A test asks for the quick mode
    with ``@pytest.mark.standin(mode="fast")``.
    """
    monkeypatch.setattr(proof, "proven", lambda configuration: configuration.kernels)
    if request.param == "cpu":
        monkeypatch.setattr(dispatch, "kernel_backend", lambda: ("metal", ""))
        marker = request.node.get_closest_marker("standin")
        with on_cpu(**(marker.kwargs if marker else {})) as calls:
            yield calls
    else:
        with on_gpu(request.param):
            yield []

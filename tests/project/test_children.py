"""Processes that tests start find MLX on the CPU, also where its own default is a GPU."""

import os
import subprocess
import sys

import pytest
from processes import CHILDREN, environment


@pytest.mark.parametrize("inherit", [True, False])
def test_mlx_is_put_on_the_cpu_once_it_is_loaded(inherit, tmp_path):
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "core.py").write_text("cpu = 'cpu'\nset_default_device = print\n")
    program = "print('started')\nimport mlx.core\nprint('loaded')\nimport mlx.core"
    inherited = os.environ["PYTHONPATH"] if inherit else environment()["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), inherited])},
        capture_output=True,
        text=True,
    )
    assert (done.stdout.split(), done.stderr) == (["started", "cpu", "loaded"], "")


def test_there_is_no_mlx():
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import sitecustomize, mlx.core"],
        env={"PYTHONPATH": str(CHILDREN)},
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'mlx'"

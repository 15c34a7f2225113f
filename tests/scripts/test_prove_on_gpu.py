"""scripts/prove_on_gpu.sh, as far as a CPU goes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

SCRIPT = ROOT / "scripts" / "prove_on_gpu.sh"


def prove(*arguments, cwd, **environment):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [SCRIPT, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
    )


def test_syntax():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "scripts/prove_on_gpu.sh WHEELS OUT [RUN]"),
        (["missing", "out"], {}, "no folder of wheels: 'missing'"),
        (["-", "out", "missing"], {}, "no run: 'missing'"),
        (["-", "out"], {"PROVE_SECONDS": "soon"}, "PROVE_SECONDS must be a number of 1 or more"),
    ],
)
def test_bad_input_ends_before_any_work(tmp_path, arguments, environment, message):
    process = prove(*arguments, cwd=tmp_path, **environment)
    assert process.returncode == 2
    assert message in process.stderr
    assert list(tmp_path.iterdir()) == []


def test_results_of_another_time_are_kept(tmp_path):
    (tmp_path / "out" / "run").mkdir(parents=True)
    process = prove("-", "out", cwd=tmp_path)
    assert process.returncode == 2
    assert "is there already" in process.stderr


def test_wheels_that_cannot_be_installed_are_said(tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "torn-1.0-py3-none-any.whl").write_text("no wheel")
    process = prove("wheels", "out", cwd=tmp_path, PROVE_SECONDS="120")
    assert process.returncode == 1
    assert process.stdout.startswith("install: exit code 1")


@pytest.mark.smoke
def test_every_part_within_its_time(tmp_path):
    command = [sys.executable, "-m", "mlx_tlstm.train", "--samples", "30", "--out", "run"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    prove("-", "out", "run", cwd=tmp_path, PROVE_SECONDS="120")
    out = tmp_path / "out"
    summary = (out / "summary.txt").read_text().splitlines()
    parts = [line.partition(":")[0] for line in summary]
    assert [name for name in parts if (out / f"{name}.txt").is_file()] == [
        "check",
        "tests",
        "tune",
        "benchmark-kernels",
        "benchmark-depth",
        "benchmark-layers",
        "training",
    ]
    assert '"plain"' in (out / "check.json").read_text()
    assert "no kernels run here" in (out / "tune.txt").read_text()
    assert (out / "run" / "config.json").is_file()
    assert {path: path.read_bytes() for path in before} == before

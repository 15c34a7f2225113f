"""The kernels' translation to CUDA compiles, where NVRTC is installed."""

import importlib.util
import re
from pathlib import Path

import click
import compile_report
import pytest
from benchmarking import nvrtc as compiling
from benchmarking.launches import of_a_pass
from click.testing import CliRunner
from kernel_mutations import Mutation, in_sources

from mlx_tlstm import TLSTM
from mlx_tlstm.kernels import library

SIZE = ["--size", "2x3,M=7,B=2,T=5"]


@pytest.fixture
def nvrtc():
    try:
        compile_report.Compiler("sm_90")
    except click.ClickException as error:
        pytest.skip(error.message)


def test_every_kernel_compiles(nvrtc):
    result = CliRunner().invoke(compile_report.main, SIZE)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines()[2:]]
    assert {row[0] for row in rows} == set(library.KERNELS)
    assert {row[1] for row in rows} == {"float32", "float16", "bfloat16"}
    for *_, registers, _, spilt in rows:
        assert 0 < int(registers) <= 255
        assert spilt == "0"


def test_an_error_is_shown(nvrtc):
    with in_sources(Mutation("memory_forward.metal", "O = 4 * M", "O = four * M")):
        result = CliRunner().invoke(compile_report.main, [*SIZE, "--dtype", "float32"])
    assert result.exit_code == 1
    assert "memory_forward does not compile" in result.output
    assert 'identifier "four" is undefined' in result.output


def test_no_words_of_metal_are_left():
    for launch in of_a_pass(TLSTM(4, 7, (2, 3), norm="channel"), 2, 5):
        text = re.sub(r"//.*", "", compile_report.cuda_source(launch))
        assert not re.search(r"\b(device|constant|thread|threadgroup)\b", text)
        assert f"__global__ void {launch.name}(" in text


def test_without_nvrtc(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(compiling, "TOOLKIT", Path("/nowhere"))
    result = CliRunner().invoke(compile_report.main, SIZE)
    assert result.exit_code == 1
    assert "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime" in result.output


def test_bad_size():
    result = CliRunner().invoke(compile_report.main, ["--size", "4x4,M=100"])
    assert result.exit_code == 2
    assert "a size reads like 4x4,M=100,B=15,T=42" in result.output

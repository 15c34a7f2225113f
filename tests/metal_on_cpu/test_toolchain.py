"""Choosing a compiler, and the build cache."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import metal_on_cpu
from metal_on_cpu import Kernel, symbols, toolchain

COPY = "y[thread_position_in_grid.x] = x[thread_position_in_grid.x];"
CALL = {
    "inputs": [np.arange(40, dtype=np.float32)],
    "grid": (40, 1, 1),
    "threadgroup": (32, 1, 1),
    "output_shapes": [(40,)],
    "output_dtypes": [np.float32],
}
RUN_COPY = """
import numpy
from metal_on_cpu import test_toolchain as t
kernel = t.Kernel("copy", ["x"], ["y"], t.COPY)
assert kernel(**t.CALL, mode="san")[0][39] == 39
"""


@pytest.fixture
def fresh_toolchain():
    """Looks for a compiler anew, here and after the test."""
    toolchain.toolchain.cache_clear()
    yield
    toolchain.toolchain.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="there is none elsewhere")
@pytest.mark.usefixtures("fresh_toolchain")
class TestChoice:
    def test_a_named_compiler_that_does_not_exist(self, monkeypatch):
        monkeypatch.setenv("METAL_ON_CPU_CLANG", "clang++-that-is-not-there")
        reason = metal_on_cpu.why_unavailable()
        assert reason == "METAL_ON_CPU_CLANG names no program: clang++-that-is-not-there"

    def test_no_compiler_at_all(self, monkeypatch):
        monkeypatch.delenv("METAL_ON_CPU_CLANG", raising=False)
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        reason = metal_on_cpu.why_unavailable()
        assert reason is not None
        assert reason.endswith("needs a compiler: pip install ziglang, or apt-get install clang-19")

    @pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="no ziglang wheel")
    def test_the_wheel_serves_without_an_installed_clang(self, monkeypatch):
        monkeypatch.delenv("METAL_ON_CPU_CLANG", raising=False)
        monkeypatch.setenv("PATH", "")
        assert metal_on_cpu.why_unavailable() is None
        assert toolchain.toolchain().version.startswith("ziglang ")


def test_other_systems(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux" in str(metal_on_cpu.why_unavailable())


@pytest.mark.usefixtures("compiler")
def test_a_kernel_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("METAL_ON_CPU_CACHE", str(tmp_path))
    Kernel("copy", ["x"], ["y"], COPY)(**CALL)
    (library,) = tmp_path.glob("copy-fast-*.so")
    before = library.stat().st_mtime_ns
    Kernel("copy", ["x"], ["y"], COPY)(**CALL)
    Kernel("copy", ["x"], ["y"], COPY + " ")(**CALL)
    assert library.stat().st_mtime_ns == before
    assert len(list(tmp_path.glob("copy-fast-*.so"))) == 2


@pytest.mark.usefixtures("compiler")
def test_processes_share_a_cold_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METAL_ON_CPU_CACHE", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(metal_on_cpu.__file__).parents[1]))
    processes = [
        subprocess.Popen([sys.executable, "-c", RUN_COPY], stderr=subprocess.PIPE) for _ in range(3)
    ]
    for process in processes:
        _, message = process.communicate()
        assert process.returncode == 0, message.decode()
    assert len(list(tmp_path.glob("copy-san-*.so"))) == 1
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "zig"]


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("program", symbols.PROGRAMS)
def test_messages_name_lines_of_the_kernel(program, monkeypatch):
    path = symbols.shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    monkeypatch.setattr(symbols, "find_symbolizer", lambda: (path, symbols.PROGRAMS[program]))
    kernel = Kernel("past", ["x"], ["y"], "uint i = thread_position_in_grid.x;\n\ny[i] = x[i + 1];")
    with pytest.raises(metal_on_cpu.MslError, match=r"\n  past\.metal:3"):
        kernel(**CALL, mode="san")


@pytest.mark.usefixtures("compiler")
def test_messages_give_addresses_where_nothing_knows_lines(monkeypatch):
    monkeypatch.setattr(symbols, "find_symbolizer", lambda: None)
    kernel = Kernel("past", ["x"], ["y"], "uint i = thread_position_in_grid.x;\n\ny[i] = x[i + 1];")
    with pytest.raises(metal_on_cpu.MslError, match=r"'x'\[40\], which has 40.*\n  pc 0x[0-9a-f]+"):
        kernel(**CALL, mode="san")

"""Which BLAS MLX finds on Linux, in processes of their own: a library stays once it is loaded."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from processes import ROOT

from mlx_tlstm import blas

SOURCES = Path(blas.__file__).parent
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

#: The package without its __init__, so that a test can set up what loading will meet.
BEFORE = """
import ctypes, os, signal, sys, time, types
from pathlib import Path
sys.modules["mlx_tlstm"] = package = types.ModuleType("mlx_tlstm")
package.__path__ = [sys.argv[1]]
from mlx_tlstm import blas
from mlx_tlstm.blas import wheel
blas.SYSTEM_LIBRARIES = ()
"""
#: A product of [[1, 2], [3, 4]] by itself under the name that MLX asks for, and what was said.
AFTER = """
blas.preload()
def product():
    Floats = ctypes.c_float * 4
    a, c = Floats(1, 2, 3, 4), Floats()
    one = ctypes.c_float(1)
    ctypes.CDLL(None).cblas_sgemm(
        101, 111, 111, 2, 2, 2, one, a, 2, a, 2, ctypes.c_float(0), c, 2)
    return list(c) == [7, 10, 15, 22]
print(product() if blas.is_fast() else blas.hint())
"""
FAST = "True"
#: A library with no more than the product above.
SYSTEM = """
int of_the_system;
void cblas_sgemm(int order, int left, int right, int rows, int columns, int depth, float alpha,
                 const float *a, int a_stride, const float *b, int b_stride, float beta, float *c)
{
    for (int i = 0; i < 4; i++)
        c[i] = a[i / 2 * 2] * b[i % 2] + a[i / 2 * 2 + 1] * b[2 + i % 2];
}
"""


@pytest.fixture
def environment(tmp_path):
    """No cache as yet, and little to read before the first line."""
    clean = {k: v for k, v in os.environ.items() if k != blas.ENVIRONMENT_VARIABLE}
    return clean | {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def start(environment):
    def start(setup="", then="", **changes):
        return subprocess.Popen(
            [sys.executable, "-c", BEFORE + setup + AFTER + then, str(ROOT / "mlx_tlstm")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | changes,
        )

    return start


@pytest.fixture
def load(start):
    """What a process prints that loads OpenBLAS after ``setup``."""

    def load(setup="", then="", **changes):
        process = start(setup, then, **changes)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        return output.strip()

    return load


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "mlx_tlstm" / "openblas"


@pytest.fixture
def compiler(tmp_path):
    """Put a script in the compiler's place; the PATH to use."""

    def compiler(script):
        tools = tmp_path / "tools"
        tools.mkdir()
        path = tools / "g++"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return f"{tools}:{os.environ['PATH']}"

    return compiler


def test_mlx_multiplies_with_the_wheel(load):
    then = """
del sys.modules["mlx_tlstm"]
import mlx_tlstm, mlx.core as mx, numpy as np
from mlx_tlstm.checking.timing import machine
mx.set_default_device(mx.cpu)
for kind in ("float32", "float64", "complex64"):
    a, b, c = (np.random.randn(2, *shape) for shape in ((300, 200), (200, 400), (300, 400)))
    a, b, c = (x[0] + 1j * x[1] if kind == "complex64" else x[0] for x in (a, b, c))
    for a, b in ((a, b), (np.asfortranarray(a), b), (a, np.asfortranarray(b))):
        arrays = (mx.array(x.astype(kind), dtype=getattr(mx, kind)) for x in (c, a, b))
        found = mx.addmm(*arrays, alpha=2, beta=3)
        assert np.abs(np.array(found) - 2 * a @ b - 3 * c).max() < 1e-3
print(machine().blas, "scipy_openblas" in Path("/proc/self/maps").read_text(), blas.is_fast())
"""
    first, second = load(then=then, OPENBLAS_NUM_THREADS="1").splitlines()
    assert first == FAST
    assert second.startswith("OpenBLAS 0.3.")
    assert second.endswith("1 threads True True")


def test_names_of_the_wheel_stay_local(load):
    # PyTorch and SciPy bring libraries that ask for some of them.
    then = """
print([hasattr(ctypes.CDLL(None), n) for n in ("sgemm_", "cblas_dgemm", "scipy_cblas_sgemm")])
"""
    assert load(then=then).splitlines() == [FAST, "[False, True, False]"]


def test_a_forked_process_multiplies(load):
    then = """
sys.stdout.flush()
child = os.fork()
if child == 0:
    os._exit(product())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert load(then=then).splitlines() == [FAST, "1"]


def test_the_cache_needs_no_compiler(load, folder):
    assert "no C compiler" in load(PATH="/nowhere")
    assert load() == FAST
    stored = {path: path.stat().st_mtime_ns for path in folder.glob("*.so")}
    assert len(stored) == 1
    assert load(PATH="/nowhere") == FAST
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.so")} == stored
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_build_left_behind_is_removed(load, folder):
    (folder / "building-1").mkdir(0o700, parents=True)
    folder.chmod(0o700)
    (folder / "building-1" / "forward.so").write_bytes(b"half a libra")
    assert load() == FAST
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".so"]  # and the lock


def test_a_process_that_does_not_end_is_not_waited_for(load, folder):
    folder.mkdir(0o700, parents=True)
    with FileLock(folder / "lock"):
        setup = "wheel.COMPILE_SECONDS = 0.1\n"
        assert re.search(r"openblas/lock.* could not be acquired", load(setup))
    assert load() == FAST


@pytest.mark.parametrize(
    "obstacle", ["file", "read-only", "homeless", "shared", "damaged", "folder", "not executable"]
)
def test_without_a_usable_cache_it_is_built_for_the_process(obstacle, load, folder, tmp_path):
    setup, changes = "", {}
    if obstacle == "file":
        folder.parent.parent.write_text("")
    elif obstacle == "read-only":
        changes["XDG_CACHE_HOME"] = "/proc/nothing"
    elif obstacle == "homeless":
        changes["XDG_CACHE_HOME"] = ""
        setup = "import os\nos.path.expanduser = lambda path: path\n"
    elif obstacle in ("shared", "damaged", "folder"):
        assert load() == FAST
        (path,) = folder.glob("*.so")
        path.unlink()
        if obstacle == "folder":
            path.mkdir()
        elif obstacle == "damaged":
            path.write_bytes(b"half a libra")
        else:
            source = tmp_path / "forward.c"
            source.write_text((SOURCES / "forward.c").read_text() + "int of_somebody_else;")
            command = ["g++", "-x", "c", str(source), "-fPIC", "-shared", "-o", str(path)]
            subprocess.run(command, check=True)
            folder.chmod(0o777)
    else:
        setup = """
real = ctypes.CDLL
def load(name, *a, **k):
    if name is not None and "/cache/" in name:
        raise OSError(f"{name}: failed to map segment")
    return real(name, *a, **k)
ctypes.CDLL = load
"""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    then = "print(hasattr(ctypes.CDLL(None), 'of_somebody_else'))\n"
    assert load(setup, then, TMPDIR=str(temporary), **changes).splitlines() == [FAST, "False"]
    assert not any(temporary.iterdir())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo out of order; exit 3", "g++ failed (out of order)"),
        ("exit 0", "g++ failed (no file)"),
        ("kill -9 $$", "g++ failed (exit code -9)"),
    ],
)
def test_a_compiler_that_fails_is_named(script, said, load, compiler):
    text = load(PATH=compiler(script))
    assert said in text
    assert "apt-get install" in text
    assert load() == FAST  # nothing bad was kept


def test_a_compiler_that_hangs_is_ended_with_its_children(load, compiler, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        path = compiler(f"sleep 60 > {pipe} & sleep 60")
        assert "g++ took more than 0.2 s" in load("wheel.COMPILE_SECONDS = 0.2\n", PATH=path)
        select.select([reader], [], [], 20)  # until the child, if it had begun, has it no more
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_one_of_many_processes_builds(start, compiler, tmp_path):
    log = tmp_path / "log"
    real = shutil.which("g++")
    path = compiler(f'echo built >> {log}; sleep 0.3; exec {real} "$@"')
    processes = [start(PATH=path) for _ in range(5)]
    assert [process.communicate()[0].strip() for process in processes] == [FAST] * 5
    assert log.read_text().count("built") == 1


def test_children_that_nobody_waits_for(load):
    assert load("signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n") == FAST


@pytest.mark.parametrize(
    ("setup", "changes", "said"),
    [
        ("", {blas.ENVIRONMENT_VARIABLE: "0"}, "MLX_TLSTM_OPENBLAS=0"),
        ("sys.modules['mlx.core'] = types.ModuleType('mlx.core')\n", {}, "before mlx"),
        ("wheel.DISTRIBUTION = 'not-there'\n", {}, "not-there is not installed"),
    ],
)
def test_nothing_is_loaded(setup, changes, said, load, folder):
    then = "print('openblas' in Path('/proc/self/maps').read_text())\n"
    hint, loaded = load(setup, then, **changes).splitlines()
    assert said in hint
    assert loaded == "False"
    assert not folder.exists()


@pytest.mark.parametrize("torch", [False, True])
def test_the_system_comes_first_but_not_beside_pytorch(torch, load, tmp_path):
    source, library = tmp_path / "system.c", tmp_path / "libsystem.so"
    source.write_text(SYSTEM)
    command = ["g++", "-x", "c", str(source), "-fPIC", "-shared", "-o", str(library)]
    subprocess.run(command, check=True)
    setup = f"blas.SYSTEM_LIBRARIES = ('libnothing.so.7', {str(library)!r})\n"
    if torch:
        setup += "sys.modules['torch'] = types.ModuleType('torch')\n"
    then = "print(hasattr(ctypes.CDLL(None), 'of_the_system'))\n"
    assert load(setup, then) == f"{FAST}\n{not torch}"

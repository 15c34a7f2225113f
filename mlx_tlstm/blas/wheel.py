"""The OpenBLAS of the wheel ``scipy-openblas32``, under the names that MLX asks for.

The wheel prefixes its names, so that a library of three functions is needed that forward to it. It
is compiled here, with the compiler that ``mx.compile`` needs on a CPU anyway, and kept in the
user's cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock

from mlx_tlstm.files import cache_folder, remove_leftovers, sync

DISTRIBUTION = "scipy-openblas32"
FUNCTIONS = ("sgemm", "dgemm", "cgemm")

#: The first of these that is found. MLX itself knows the first only.
COMPILERS = ("g++", "gcc", "clang", "cc")
FLAGS = ("-O2", "-fPIC", "-shared", "-nostdlib")

COMPILE_SECONDS = 20.0

_SOURCE = Path(__file__).parent / "forward.c"
_BUILDING = "building-"

#: The wheel's library once :func:`load` made MLX use it.
loaded: ctypes.CDLL | None = None


class BuildError(RuntimeError):
    """The forwarding library cannot be made; the message says why."""


def load() -> None:
    """Put functions that forward to the wheel's OpenBLAS into the global scope.

    Raises:
        BuildError: There is no wheel or no compiler, or one of them fails.
        OSError: A file can neither be cached nor kept in a temporary folder.
    """
    library = _library()
    try:
        _connect(library, _cached())
    except TimeoutError:
        raise
    except (OSError, RuntimeError):
        # No home, a cache that cannot be written or that is another user's, a full disk, a file
        # system whose files may not be executed: once more, for this process only.
        with tempfile.TemporaryDirectory(prefix="mlx_tlstm-") as folder:
            _connect(library, _built(Path(folder)))


def openblas_folder() -> Path:
    """Where forwarding libraries are kept; only the user may write there."""
    return cache_folder() / "openblas"


def _library() -> Path:
    spec = importlib.util.find_spec(DISTRIBUTION.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder, "lib").glob("libscipy_openblas*.so*")):
            return path
    raise BuildError(f"{DISTRIBUTION} is not installed")


def _connect(library: Path, forwards: Path) -> None:
    """Load both; the wheel's own names, some of them other libraries' too, stay local."""
    global loaded
    functions = ctypes.CDLL(str(library))
    # Nobody sees the forwarding functions before they know whom to call.
    local = ctypes.CDLL(str(forwards))
    for name in FUNCTIONS:
        pointer = ctypes.c_void_p.in_dll(local, f"mlx_tlstm_{name}")
        pointer.value = ctypes.cast(functions[f"scipy_cblas_{name}"], ctypes.c_void_p).value
    ctypes.CDLL(str(forwards), mode=ctypes.RTLD_GLOBAL)
    loaded = functions


def _cached() -> Path:
    """The forwarding library in the cache; made there by one process, while others wait."""
    folder = openblas_folder()
    path = folder / f"{_key()}.so"
    if not path.is_file():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(folder)
        seconds = COMPILE_SECONDS  # after which the process that has it is done
        with FileLock(folder / "lock", seconds, poll_interval=0.02, preserve_lock_file=True):
            if not path.is_file():
                remove_leftovers(folder, _BUILDING)
                with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=folder) as temporary:
                    os.replace(_built(Path(temporary)), path)
    _require_private(folder)
    return path


def _key() -> str:
    """Names what the forwarding library depends on: its source, the wheel, the architecture.

    The compiler is not among them. A library that was made needs none, and the calling convention
    is the architecture's.
    """
    words = (*FLAGS, importlib.metadata.version(DISTRIBUTION), os.uname().machine)
    parts = (_SOURCE.read_bytes(), *map(str.encode, words))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _require_private(folder: Path) -> None:
    """Refuse a folder where other users may put libraries."""
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} may be written by others")


def _built(folder: Path) -> Path:
    """Compile the forwarding library into ``folder``.

    The compiler and all that it started end after COMPILE_SECONDS at the latest.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise BuildError("there is no C compiler for the OpenBLAS that was installed beside it")
    name, library = Path(compiler).name, folder / "forward.so"
    # Its words go to a file: a pipe would be waited for until its last child has closed it.
    with tempfile.TemporaryFile(dir=folder) as output:
        process = subprocess.Popen(
            [compiler, "-x", "c", str(_SOURCE), "-x", "none", *FLAGS, "-o", str(library)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        try:
            code = process.wait(COMPILE_SECONDS)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"{name} took more than {COMPILE_SECONDS:g} s") from None
            raise
        output.seek(0)
        said = (output.read().decode(errors="replace").strip().splitlines() or [""])[0][:200]
    # The exit code alone is none where the program around us ignores its children.
    if code or not library.exists():
        raise BuildError(f"{name} failed ({said or (f'exit code {code}' if code else 'no file')})")
    sync(library)  # half a library would end the process that loads it
    return library

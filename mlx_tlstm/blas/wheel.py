"""The OpenBLAS of the wheel ``scipy-openblas32``, under the names that MLX asks for.

The wheel prefixes its names, so that a library of three functions is needed that forward to it. It
is compiled here, with the compiler that ``mx.compile`` needs on a CPU anyway, checked by products
in a process of its own, and kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from mlx_tlstm.files import cache_folder, remove_leftovers

DISTRIBUTION = "scipy-openblas32"
FUNCTIONS = ("sgemm", "dgemm", "cgemm")

#: The first of these that is found. MLX itself knows the first only.
COMPILERS = ("g++", "gcc", "clang", "cc")
FORWARD_FLAGS = ("-O2", "-fPIC", "-shared", "-nostdlib")
CHECK_FLAGS = ("-O2", "-ldl")

COMPILE_SECONDS, CHECK_SECONDS = 60.0, 20.0
#: What takes longer than that is not tried again for so long.
RETRY_SECONDS = 3600.0

#: What check.c prints where all products are right.
PASSED = b"right\n"

_SOURCES = Path(__file__).parent
_BUILDING = "building-"
_DIGEST_BYTES = hashlib.sha256().digest_size

#: The wheel's library once :func:`load` made MLX use it.
loaded: ctypes.CDLL | None = None


class BuildError(RuntimeError):
    """The forwarding library cannot be made, or its products are wrong; the message says why."""


def load() -> None:
    """Put functions that forward to the wheel's OpenBLAS into the global scope.

    Raises:
        BuildError: There is no wheel or no compiler, one of them fails, or products are wrong.
        OSError: A file can neither be cached nor kept in a temporary folder.
    """
    library = _library()
    try:
        _connect(library, _cached(library))
    except TimeoutError:
        raise
    except (OSError, RuntimeError):
        # No home, a cache that cannot be written or that is another user's, a full disk, a file
        # system whose files may not be executed: once more, for this process only.
        with tempfile.TemporaryDirectory(prefix="mlx_tlstm-") as folder:
            _connect(library, _build(library, Path(folder)))


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


def _cached(library: Path) -> Path:
    """The forwarding library in the cache; made there by one process, while others wait."""
    folder = openblas_folder()
    path = folder / f"{_key()}.so"
    if not _is_whole(path):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(folder)
        seconds = COMPILE_SECONDS + CHECK_SECONDS  # after which the process that has it is done
        with FileLock(folder / "lock", seconds, poll_interval=0.02, preserve_lock_file=True):
            if not _is_whole(path):
                remove_leftovers(folder, _BUILDING)
                _build_once(library, path)
    _require_private(folder)
    return path


def _key() -> str:
    """Names what the forwarding library depends on: its source, the wheel, the architecture.

    The compiler is not among them. A library that was made needs none, and the calling convention
    is the architecture's.
    """
    texts = [(_SOURCES / name).read_bytes() for name in ("forward.c", "check.c")]
    words = (*FORWARD_FLAGS, importlib.metadata.version(DISTRIBUTION), os.uname().machine)
    return hashlib.sha256(b"\0".join([*texts, *map(str.encode, words)])).hexdigest()[:32]


def _is_whole(path: Path) -> bool:
    """Whether a file is there and ends in the digest of what is before.

    Half a library would end the process that loads it (SIGBUS).
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return hashlib.sha256(body).digest() == digest


def _require_private(folder: Path) -> None:
    """Refuse a folder where other users may put libraries."""
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} may be written by others")


def _build_once(library: Path, path: Path) -> None:
    """Put a checked forwarding library at ``path``, unless that took too long lately."""
    failure = path.with_suffix(".failed")
    with contextlib.suppress(FileNotFoundError):
        if time.time() < failure.stat().st_mtime + RETRY_SECONDS:
            raise TimeoutError(f"{failure.read_text()} (remove {failure} to try again)")
    try:
        with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=path.parent) as temporary:
            os.replace(_build(library, Path(temporary)), path)
    except TimeoutError as error:
        failure.write_text(str(error))
        raise


def _build(library: Path, folder: Path) -> Path:
    """Compile the forwarding library into ``folder`` and check it."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise BuildError("there is no C compiler for the OpenBLAS that was installed beside it")
    forwards, check = folder / "forward.so", folder / "check"
    for target, flags in ((forwards, FORWARD_FLAGS), (check, CHECK_FLAGS)):
        source = _SOURCES / f"{target.stem}.c"
        command = [compiler, "-x", "c", source, "-x", "none", *flags, "-o", target]
        _run(folder, command, COMPILE_SECONDS)
        if not target.exists():
            raise BuildError(f"{compiler} made nothing")
    output = _run(folder, [check, library, forwards], CHECK_SECONDS)
    # The exit code alone is none where the program around us ignores its children.
    if output != PASSED:
        raise BuildError(f"{DISTRIBUTION} failed its check ({_text(output) or 'it crashed'})")
    with forwards.open("r+b") as file:
        digest = hashlib.sha256(file.read()).digest()
        file.write(digest)
    return forwards


def _run(folder: Path, command: Sequence[str | Path], seconds: float) -> bytes:
    """What a command printed; it and all that it started end after ``seconds`` at the latest."""
    name = Path(command[0]).name
    # A file, since a pipe would be waited for until the last of them has closed it.
    with tempfile.TemporaryFile(dir=folder) as output:
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        try:
            code = process.wait(seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"{name} took more than {seconds:g} s") from None
            raise
        output.seek(0)
        printed = output.read()
    if code:
        raise BuildError(f"{name} failed ({_text(printed) or f'exit code {code}'})")
    return printed


def _text(output: bytes) -> str:
    """The first line of some output, short."""
    return (output.decode(errors="replace").strip().splitlines() or [""])[0][:200]

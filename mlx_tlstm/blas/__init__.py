"""OpenBLAS for MLX on Linux, whose CPU wheel multiplies matrices some thirty times slower.

Nothing here may import MLX: the library has to be loaded before it.
"""

from __future__ import annotations

import ctypes
import os
import sys

from mlx_tlstm.blas import wheel

#: Set to 0 to leave the BLAS alone.
ENVIRONMENT_VARIABLE = "MLX_TLSTM_OPENBLAS"

#: What Linux distributions call an OpenBLAS that they installed.
SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblas.so")

_INSTALL = (
    "'sudo apt-get install g++' (or libopenblas0-pthread) makes training several times faster"
)
_reason = _INSTALL


def preload() -> None:
    """Load an OpenBLAS that MLX uses in place of its own BLAS, if MLX is not imported yet.

    It is the system's, or else that of the wheel ``scipy-openblas32``, which is installed with this
    package.
    The system's would also take the place of PyTorch's own library. If PyTorch is imported already,
    only the wheel's is used, which leaves PyTorch alone.
    """
    global _reason
    if is_fast():
        return
    if os.environ.get(ENVIRONMENT_VARIABLE) == "0":
        _reason = f"{ENVIRONMENT_VARIABLE}=0 keeps OpenBLAS out, which is several times faster"
    elif "mlx.core" in sys.modules:
        _reason = "importing mlx_tlstm before mlx makes training several times faster"
    elif "torch" in sys.modules or not _load_system():
        try:
            wheel.load()
        except Exception as error:  # whatever it is, MLX works without
            _reason = f"{error}; {_INSTALL}"


def _load_system() -> bool:
    for name in SYSTEM_LIBRARIES:
        try:
            found = hasattr(ctypes.CDLL(name), "cblas_sgemm")
        except OSError:
            continue
        if found:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            return True
    return False


def is_fast() -> bool:
    """Whether MLX's matrix products on the CPU go to an optimised library.

    macOS has Accelerate. On Linux a BLAS that stands in the global scope takes the place of the
    one linked into MLX.
    """
    return sys.platform != "linux" or hasattr(ctypes.CDLL(None), "cblas_sgemm")


def hint() -> str:
    """If matrix products are slow, why, and what helps."""
    return f"MLX's Linux CPU build multiplies matrices slowly here: {_reason}"


def name() -> str:
    """Name of the optimised library that MLX uses; see :func:`is_fast`."""
    if sys.platform == "darwin":
        return "Accelerate"
    library, prefix = wheel.loaded or ctypes.CDLL(None), "scipy_" if wheel.loaded else ""
    if not hasattr(library, f"{prefix}openblas_get_config"):
        return "loaded globally"
    config = library[f"{prefix}openblas_get_config"]
    config.restype = ctypes.c_char_p
    threads = library[f"{prefix}openblas_get_num_threads"]()
    return f"{config().decode().strip()}, {threads} threads"

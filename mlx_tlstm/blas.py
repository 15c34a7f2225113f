"""OpenBLAS for MLX on Linux, whose CPU wheel multiplies matrices some thirty times slower.

This module must not import MLX: the library has to be loaded before it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys

#: Set to 0 to leave the BLAS alone.
ENVIRONMENT_VARIABLE = "MLX_TLSTM_OPENBLAS"

HINT = (
    "MLX's Linux CPU build multiplies matrices slowly here; "
    "'sudo apt-get install libopenblas0-pthread' makes training several times faster"
)


def preload() -> None:
    """Load an installed OpenBLAS, where MLX is not imported yet, so that MLX finds it first."""
    wanted = sys.platform == "linux" and os.environ.get(ENVIRONMENT_VARIABLE) != "0"
    if not wanted or "mlx.core" in sys.modules or is_fast():
        return
    name = ctypes.util.find_library("openblas")
    for candidate in filter(None, (name, "libopenblas.so.0")):
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return


def is_fast() -> bool:
    """Whether MLX's matrix products on the CPU go to an optimised library.

    macOS has Accelerate. On Linux a BLAS that stands in the global scope takes the place of the
    one linked into MLX.
    """
    return sys.platform != "linux" or hasattr(ctypes.CDLL(None), "cblas_sgemm")

"""Metal kernels without Metal: type-checked, run and sanitized on a CPU. See README.md."""

from metal_on_cpu import standin
from metal_on_cpu.dtypes import bfloat16
from metal_on_cpu.errors import MslError
from metal_on_cpu.kernel import CheckResult, Kernel
from metal_on_cpu.source import Spec, mlx_source
from metal_on_cpu.toolchain import why_unavailable

__all__ = [
    "CheckResult",
    "Kernel",
    "MslError",
    "Spec",
    "bfloat16",
    "mlx_source",
    "standin",
    "why_unavailable",
]

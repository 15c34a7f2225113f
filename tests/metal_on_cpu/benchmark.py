"""Times compiling and running the sample kernels: ``python -m metal_on_cpu.benchmark``.

Compiling starts from an empty cache; of runs, the fastest of three counts.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable

from metal_on_cpu import samples, toolchain

CASES = {
    "convolution 3x3, 1500 rows, 100 to 100": (
        samples.conv2d(),
        samples.conv2d_case(15, 10, 10, 100, 100, (3, 3)),
    ),
    "convolution 3x3, 40 rows, 20 to 37": (
        samples.conv2d(),
        samples.conv2d_case(2, 4, 5, 20, 37, (3, 3)),
    ),
    "gate, 1500 rows of 9 x 100": (samples.gate(), samples.gate_case(1500, 9, 100)),
    "column sum, 1500 x 100": (samples.colsum(), samples.colsum_case(1500, 100)),
}


def seconds(function: Callable[[], object], repeat: int = 1) -> float:
    """The fastest of some calls."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Prints one row a kernel and mode."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["METAL_ON_CPU_CACHE"] = folder
        print(toolchain.toolchain().version)
        print(f"the runtime, once: {seconds(toolchain.runtime_objects):.2f} s\n")
        for name, (kernel, case) in CASES.items():
            check = seconds(
                lambda k=kernel, c=case: k.check(**c.check_arguments, small_inputs=False)
            )
            print(f"{name}\n    check {check:5.2f} s")
            for mode in toolchain.MODE_FLAGS:
                stats: dict = {}
                arguments = {"template": (), **case.check_arguments, "mode": mode}
                compiling = seconds(lambda k=kernel, a=arguments: k.build(**a))
                call = {**case.call, "mode": mode, "stats": stats}
                running = seconds(lambda k=kernel, c=call: k(**c), repeat=3)
                print(
                    f"    {mode:5} {compiling:5.2f} s to compile, {running:7.3f} s to run; "
                    f"{stats['mma']} matrix products, {stats['switches']} switches of fiber"
                )


if __name__ == "__main__":
    main()

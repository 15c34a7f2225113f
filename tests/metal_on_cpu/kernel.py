"""Checks and runs the kernels of ``mx.fast.metal_kernel`` on a machine without Metal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metal_on_cpu import cpu, toolchain
from metal_on_cpu.check import check_text
from metal_on_cpu.dtypes import dtype_name, numpy_dtype
from metal_on_cpu.errors import MslError
from metal_on_cpu.launch import bind, launch
from metal_on_cpu.source import SMALL, GeneratedSource, Spec, Template, mlx_source


class CheckResult(NamedTuple):
    """What :meth:`Kernel.check` found in a kernel that compiles."""

    warnings: str  # the compiler's
    small_input_errors: list[str]  # one for each input that may not have fewer than 8 elements


class Kernel:
    """A Metal kernel, as ``mx.fast.metal_kernel`` takes it, for the CPU and NumPy arrays.

    Args:
        name, input_names, output_names, source, header, ensure_row_contiguous, compile_options:
            as of ``mx.fast.metal_kernel``. Inputs are always made row-contiguous, and numbers are
            those of the safe math mode whatever the options say.
        source_file: names the source in messages; ``<name>.metal`` by default.
        with_mlx_utils: put MLX's ``utils.h`` in front, as MLX does. ``False`` for a header that
            brings it along.
    """

    def __init__(
        self,
        name: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        source: str,
        header: str = "",
        ensure_row_contiguous: bool = True,
        compile_options: dict | None = None,
        source_file: str | None = None,
        with_mlx_utils: bool = True,
    ) -> None:
        self.name = name
        self.input_names = list(input_names)
        self.output_names = list(output_names)
        self.source = source
        self.header = header
        self.source_file = source_file or f"{name}.metal"
        self.with_mlx_utils = with_mlx_utils and toolchain.mlx_headers() is not None
        self._libraries: dict[tuple, tuple[GeneratedSource, Path]] = {}

    def mlx_source(
        self,
        inputs: Sequence[Spec | np.ndarray],
        template: Template = (),
        output_dtypes: Sequence[Any] = (),
    ) -> GeneratedSource:
        """The text that MLX would compile for a call with these inputs."""
        return mlx_source(
            self.name,
            self.input_names,
            [Spec.of(array) for array in inputs],
            self.output_names,
            output_dtypes,
            self.source,
            self.header,
            template or (),
        )

    def check(
        self,
        inputs: Sequence[Spec | np.ndarray],
        template: Template = (),
        output_dtypes: Sequence[Any] = (),
        small_inputs: bool = True,
    ) -> CheckResult:
        """Compiles the kernel with Metal's address spaces, for its errors only.

        Args:
            inputs, template, output_dtypes: as of the call; an input's values do not matter, so
                that a Spec will do.
            small_inputs: compile also as if each input in turn had fewer than 8 elements, which
                MLX passes as ``constant`` instead of ``device``.

        Raises:
            MslError: with the compiler's messages.
        """
        specs = [Spec.of(array) for array in inputs]
        warnings = self._check(specs, template, output_dtypes)
        errors = []
        for i, spec in enumerate(specs) if small_inputs else ():
            small = Spec((1,) * spec.ndim, spec.dtype)
            if spec.ndim and small.key != spec.key:
                try:
                    self._check([*specs[:i], small, *specs[i + 1 :]], template, output_dtypes)
                except MslError as error:
                    reason = str(error).splitlines()[0]
                    name = self.input_names[i]
                    errors.append(f"if '{name}' had fewer than {SMALL} elements: {reason}")
        return CheckResult(warnings, errors)

    def _check(self, specs: list[Spec], template: Template, output_dtypes: Sequence[Any]) -> str:
        generated = self.mlx_source(specs, template, output_dtypes)
        text = cpu.text_to_check(generated, self.source_file, self.with_mlx_utils)
        return check_text(self.name, text, toolchain.include_flags(self.with_mlx_utils))

    def _built(
        self, specs: list[Spec], template: Template, output_dtypes: Sequence[Any], mode: str
    ) -> tuple[GeneratedSource, Path]:
        types = tuple(dtype_name(dtype) for dtype in output_dtypes)
        key = (tuple(spec.key for spec in specs), str(list(template or ())), types, mode)
        if key not in self._libraries:
            generated = self.mlx_source(specs, template, output_dtypes)
            self._libraries[key] = generated, self._compile(generated, mode)
        return self._libraries[key]

    def _compile(self, generated: GeneratedSource, mode: str) -> Path:
        text = cpu.text_to_run(generated, self.source_file, self.with_mlx_utils)
        includes = toolchain.include_flags(self.with_mlx_utils)
        flags = toolchain.MODE_FLAGS[mode]

        def make(path: Path) -> None:
            source, compiled = path.with_suffix(".cpp"), path.with_suffix(".o")
            source.write_text(text)
            tools = toolchain.toolchain()
            for command in (
                [*tools.compile, *flags, *includes, "-c", source, "-o", compiled],
                [*tools.link, compiled, *toolchain.runtime_objects(), "-o", path],
            ):
                result = toolchain.run(command)
                if result.returncode:
                    raise MslError(result.stderr)

        return toolchain.cached(f"{self.name}-{mode}", [text, *flags, *includes], ".so", make)

    def __call__(
        self,
        inputs: Sequence[np.ndarray],
        grid: Sequence[int],
        threadgroup: Sequence[int],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[Any],
        template: Template = (),
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
        mode: str = "fast",
        order: int = 0,
        seed: int = 1,
        stats: dict | None = None,
    ) -> list[np.ndarray]:
        """Runs the kernel; arguments as in MLX, with NumPy arrays (``ml_dtypes`` for bfloat16).

        Args:
            mode: ``"fast"``, or ``"san"`` for the sanitizer: bounds, data races within and between
                threadgroups, reads of what was never written, outputs never written, overflow.
            order: in which order threads and threadgroups run: 0 forward, 1 backward, 2 random,
                both.
            seed: of order 2.
            stats: is filled with counts: threads, threadgroup_barriers, simdgroup_ops, mma,
                switches, threadgroup_bytes; in the sanitizing mode loads and stores by buffer.

        Raises:
            MslError: if the kernel does not compile or breaks a rule.
            ValueError: for arguments that do not fit the kernel.
        """
        self._check_arguments(inputs, output_shapes, output_dtypes, mode, order)
        arrays = {
            # ascontiguousarray gives 0-d arrays an axis.
            name: np.ascontiguousarray(array) if np.ndim(array) else np.array(array)
            for name, array in zip(self.input_names, inputs, strict=True)
        }
        specs = [Spec.of(array) for array in arrays.values()]
        generated, library = self._built(specs, template, output_dtypes, mode)
        if verbose:
            print(generated.text)
        outputs = {
            name: np.empty(shape, numpy_dtype(dtype))
            if init_value is None
            else np.full(shape, init_value, numpy_dtype(dtype))
            for name, shape, dtype in zip(
                self.output_names, output_shapes, output_dtypes, strict=True
            )
        }
        bound = bind(generated.buffers, arrays, outputs, initialised=init_value is not None)
        counted = launch(library, bound, grid, threadgroup, mode, order, seed)
        if stats is not None:
            stats.update(counted)
        return list(outputs.values())

    def _check_arguments(
        self,
        inputs: Sequence[Any],
        output_shapes: Sequence[Any],
        output_dtypes: Sequence[Any],
        mode: str,
        order: int,
    ) -> None:
        if len(inputs) != len(self.input_names):
            raise ValueError(
                f"{self.name} takes {len(self.input_names)} inputs but got {len(inputs)}"
            )
        if not len(output_shapes) == len(output_dtypes) == len(self.output_names):
            raise ValueError(
                f"{self.name} has {len(self.output_names)} outputs but got {len(output_shapes)} "
                f"shapes and {len(output_dtypes)} dtypes"
            )
        if mode not in toolchain.MODE_FLAGS:
            raise ValueError(f"mode must be 'fast' or 'san' but got {mode!r}")
        if order not in (0, 1, 2):
            raise ValueError(f"order must be 0, 1 or 2 but got {order!r}")

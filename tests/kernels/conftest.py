"""Launches that are type-checked and not run."""

from __future__ import annotations

import re

import metal_on_cpu
import mlx.core as mx
import pytest
from metal_on_cpu import Spec

from mlx_tlstm.kernels import convolution, library


@pytest.fixture
def type_checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each launch type-checks, with each input in turn in Metal's constant address space.

    The value is the list of their kernels, each once for its template arguments.
    """
    reason = metal_on_cpu.why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    names, checked = [], set()

    def check(kernel: library.Kernel, inputs, *, template, groups, threads, shapes, dtypes):
        if (kernel.name, str(template)) not in checked:
            checked.add((kernel.name, str(template)))
            names.append(kernel.name)
            header, body = library.text(kernel.name)
            result = metal_on_cpu.Kernel(
                kernel.name, kernel.inputs, kernel.outputs, body, header=header
            ).check(
                [Spec(array.shape, array.dtype) for array in inputs],
                list(template.items()),
                dtypes,
                # The weight gradient's steps have one shape: all are small, or none is.
                kernel is not convolution.WEIGHT_GRADIENT,
            )
            # The header's constants, of which a kernel uses some.
            warnings = re.findall(r"warning: (?!unused variable '[A-Z_]+').*", result.warnings)
            assert warnings == []
            assert result.small_input_errors == []
        return [mx.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]

    monkeypatch.setattr(library.Kernel, "__call__", check)
    return names

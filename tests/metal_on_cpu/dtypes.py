"""Names of element types: MLX's, NumPy's and Metal's."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

bfloat16 = np.dtype(ml_dtypes.bfloat16)

#: Element type to its name in the source that MLX generates (get_type_string in MLX's
#: backend/common/compiled.cpp).
MSL_TYPES = {
    "bool": "bool",
    "uint8": "uint8_t",
    "uint16": "uint16_t",
    "uint32": "uint32_t",
    "uint64": "uint64_t",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "float16": "float16_t",
    "float32": "float",
    "bfloat16": "bfloat16_t",
}


def dtype_name(dtype: Any) -> str:
    """The plain name (``"float32"``, ``"bool"``, …) of an MLX or NumPy dtype or of a name.

    Raises:
        TypeError: for what is no dtype, or one that a Metal kernel cannot take (``float64``).
    """
    name = str(dtype).rsplit(".", 1)[-1]
    name = "bool" if name == "bool_" else name
    if name not in MSL_TYPES:
        name = np.dtype(dtype).name
    if name not in MSL_TYPES:
        raise TypeError(f"a Metal kernel takes no arrays of {name}")
    return name


def numpy_dtype(dtype: Any) -> np.dtype:
    """NumPy's dtype for an MLX or NumPy dtype or a name."""
    name = dtype_name(dtype)
    return bfloat16 if name == "bfloat16" else np.dtype(name)

"""OpenBLAS has to be loaded before MLX, which importing the package first does."""

import mlx_tlstm  # noqa: F401, I001
import mlx.core as mx

# Tolerances are those of float32 sums on a CPU; a GPU's matrix products may round to less.
mx.set_default_device(mx.cpu)

"""OpenBLAS has to be loaded before MLX, which importing the package first does."""

import mlx_tlstm  # noqa: F401

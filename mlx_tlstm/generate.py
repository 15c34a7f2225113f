"""``python -m mlx_tlstm.generate MODEL``: the same as ``mlx-tlstm generate``."""

from mlx_tlstm.commands.generation import generate

if __name__ == "__main__":
    generate()

"""``python -m mlx_tlstm.data TASK``: the same as ``mlx-tlstm data``."""

from mlx_tlstm.commands.data import data

if __name__ == "__main__":
    data()

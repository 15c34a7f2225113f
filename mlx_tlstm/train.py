"""``python -m mlx_tlstm.train [TASK]``: the same as ``mlx-tlstm train``."""

from mlx_tlstm.cli import train

if __name__ == "__main__":
    train()

"""``python -m mlx_tlstm.train [TASK]``: the same as ``mlx-tlstm train``."""

from mlx_tlstm.commands.training import train

if __name__ == "__main__":
    train()

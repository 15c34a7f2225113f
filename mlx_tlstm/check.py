"""``python -m mlx_tlstm.check``: the same as ``mlx-tlstm check``."""

from mlx_tlstm.commands.checking import check

if __name__ == "__main__":
    check()

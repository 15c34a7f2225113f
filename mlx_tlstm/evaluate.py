"""``python -m mlx_tlstm.evaluate MODEL``: the same as ``mlx-tlstm evaluate``."""

from mlx_tlstm.commands.evaluation import evaluate

if __name__ == "__main__":
    evaluate()

"""``python -m mlx_tlstm.evaluate RUN``: the same as ``mlx-tlstm evaluate``."""

from mlx_tlstm.cli import evaluate

if __name__ == "__main__":
    evaluate()

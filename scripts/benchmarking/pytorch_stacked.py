"""The stacked LSTM in PyTorch, for ``pytorch_tlstm.py``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn


class TorchStackedLSTM(nn.Module):
    """The same computation as ``mlx_tlstm.StackedLSTM`` by ``torch.nn.LSTM``, cuDNN's on a GPU.

    ``torch.nn.LSTM`` shares no weights between layers, so that each has a copy, and it has no
    projection, which is multiplied into the first layer's weight.
    """

    def __init__(self, depth: int, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        parameters = {name: torch.tensor(a) for name, a in arrays.items()}
        # From the order g, i, f, o to PyTorch's i, f, g, o.
        G, I, F, O = parameters["cell.weight"].chunk(4)
        from_below, from_past = torch.cat([I, F, G, O]).unbind(1)
        G, I, F, O = parameters["cell.bias"].chunk(4)
        bias = torch.cat([I, F, G, O])
        projection = parameters["cell.input_projection.weight"]
        hidden_size, input_size = projection.shape
        self.lstm = nn.LSTM(input_size, hidden_size, depth, batch_first=True)
        first = from_below @ projection
        first_bias = bias + from_below @ parameters["cell.input_projection.bias"]
        with torch.no_grad():
            for layer in range(depth):
                of_layer = {
                    "weight_ih": from_below if layer else first,
                    "weight_hh": from_past,
                    "bias_ih": bias if layer else first_bias,
                    "bias_hh": torch.zeros_like(bias),
                }
                for name, value in of_layer.items():
                    getattr(self.lstm, f"{name}_l{layer}").copy_(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x.to(self.lstm.weight_hh_l0.dtype))[0]

"""The tLSTM in PyTorch, the baseline of ``benchmark.py``; run as a program, its worker.

The worker is a process of its own because an OpenBLAS that was loaded globally for MLX takes the
place of the MKL inside PyTorch: ``addmm`` of 240x900 by 900x409 fell from 180 to 50 GFLOP/s.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarking.pytorch_stacked import TorchStackedLSTM

# What this form was measured against, forward and backward on two cores of an AMD EPYC with
# PyTorch 2.13 (best of 4 rounds in ms at 4x4, 7x7, 3x3 and 10 of the benchmark's default sizes;
# differences of a few percent are noise; not measured on a GPU):
#   this form                                                          209  573   862   69
#   rows gathered along axis 1 of [B, P, M]                            217  604   949   71
#   taps gathered by a 0/1 matrix product                              238  615   882   69
#   pad, narrow, concatenate                                           243  690   996   73
#   pad, unfold, reshape                                               244  634  1033   76
#   F.conv1d/2d, channels first                                        315  793  1199  108
#   F.conv1d/2d, channels_last                                         283  626  1135  109
#   memory taps gathered and multiplied by bmm, rows along axis 1      291  838  1059   77
#   memory taps as views of a padded C and addcmul, rows along axis 1  277  632  1090   77
#   three sigmoids instead of one over i, f, o, rows along axis 1      219  611   982   76


class TorchTLSTM(nn.Module):
    """The same computation as ``mlx_tlstm.TLSTM``; inputs ``[B, T, R]``, outputs ``[B, T, M]``.

    Parameter names and shapes are those of the MLX layer's cell, and the memory cell and its update
    are float32 here too. ``compiled`` puts a time step through ``torch.compile``; the whole loop
    would take it minutes.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        tensor_size: Sequence[int],
        kernel_size: int = 3,
        memory_convolution: bool = True,
        norm: str | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        axes, M = len(tensor_size), hidden_size
        self.hidden_size, self.norm_kind = hidden_size, norm
        self.locations = math.prod(tensor_size)
        self.taps = kernel_size**axes
        self.kernel_channels = self.taps if memory_convolution else 0
        channels = 4 * M + self.kernel_channels
        self.input_projection = nn.Linear(input_size, M)
        self.weight = nn.Parameter(torch.empty(channels, *(kernel_size,) * axes, M))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.taps * M))
        if norm is not None:
            self.norm = nn.ParameterDict(
                {
                    "gain": nn.Parameter(torch.ones(*tensor_size, M)),
                    "bias": nn.Parameter(torch.zeros(*tensor_size, M)),
                }
            )
        radius = kernel_size // 2
        self.delay = max(math.ceil(P / radius) for P in tensor_size) - 1  # Eq. 9
        hidden, memory = tap_rows(tensor_size, kernel_size)
        self.register_buffer("hidden_rows", hidden, persistent=False)
        self.register_buffer("memory_rows", memory, persistent=False)
        self.run_step = torch.compile(self.step, dynamic=False) if compiled else self.step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch_size, x = x.shape[0], x.to(self.weight.dtype)
        steps = functional.pad(x.transpose(0, 1), (0, 0, 0, 0, 0, self.delay))
        projected = self.input_projection(steps).unbind(0)
        H = x.new_zeros(batch_size, self.locations, self.hidden_size)
        C = H.float()
        zero_row = x.new_zeros(batch_size, 1, self.hidden_size)
        first_rows = torch.arange(batch_size, device=x.device)[:, None] * (self.locations + 2)
        hidden_rows = (first_rows + self.hidden_rows).flatten()
        memory_rows = self.memory_rows.expand(batch_size, -1, -1)
        weight = self.weight.flatten(1).t()
        outputs = []
        for projection in projected:
            H, C = self.run_step(H, C, projection, weight, zero_row, hidden_rows, memory_rows)
            outputs.append(H[:, -1])
        return torch.stack(outputs[self.delay :], 1)

    def step(
        self,
        H: torch.Tensor,
        C: torch.Tensor,
        projection: torch.Tensor,
        weight: torch.Tensor,
        zero_row: torch.Tensor,
        hidden_rows: torch.Tensor,
        memory_rows: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden state and memory cell after one time step."""
        H_cat = torch.cat([H, projection[:, None], zero_row], 1).flatten(0, 1)
        rows = H_cat.index_select(0, hidden_rows).view(len(H) * self.locations, -1)
        A = torch.addmm(self.bias, rows, weight).view(len(H), self.locations, -1)
        H, C = self.update(A.float(), C, memory_rows)
        return H.to(weight.dtype), C

    def update(
        self, A: torch.Tensor, C: torch.Tensor, memory_rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden state and memory cell ``[B, P, M]`` from activations ``[B, P, 4M + <K>]``."""
        M = self.hidden_size
        A_g, A_ifo, A_q = A.split([M, 3 * M, self.kernel_channels], -1)
        I, F, O = A_ifo.sigmoid().chunk(3, -1)
        if self.kernel_channels:
            # Each example's kernels as one P x P matrix: taps that clamp to one location add up.
            empty = C.new_zeros(len(C), self.locations, self.locations)
            C = empty.scatter_add(2, memory_rows, A_q.softmax(-1)) @ C  # Eq. 17
        C = torch.addcmul(A_g.tanh() * I, C, F)  # Eq. 18
        return self.normalize(C).tanh() * O, C  # Eq. 19, 31

    def normalize(self, C: torch.Tensor) -> torch.Tensor:
        """Eq. 20 with gain and bias per location and channel."""
        if self.norm_kind is None:
            return C
        over = C.shape[2:] if self.norm_kind == "channel" else C.shape[1:]
        gain, bias = (self.norm[name].float().view(C.shape[1:]) for name in ("gain", "bias"))
        return torch.addcmul(bias, functional.layer_norm(C, over), gain)


def tap_rows(tensor_size: Sequence[int], kernel_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which row each tap of each location reads: of H_cat ``[P * <K>]``, of C ``[P, <K>]``.

    The rows of H_cat are the P locations, the projected input and a zero.
    """
    locations = math.prod(tensor_size)
    hidden, memory = [], []
    for location in itertools.product(*map(range, tensor_size)):
        for tap in itertools.product(range(kernel_size), repeat=len(tensor_size)):
            read = [p + k - kernel_size // 2 for p, k in zip(location, tap, strict=True)]
            clamped = [min(max(p, 0), P - 1) for p, P in zip(read, tensor_size, strict=True)]
            row = int(np.ravel_multi_index(clamped, tensor_size))
            memory.append(row)
            at_input = all(p == -1 for p in read)
            hidden.append(row if read == clamped else locations + (0 if at_input else 1))
    return torch.tensor(hidden), torch.tensor(memory).view(locations, -1)


def copy_parameters(module: TorchTLSTM, arrays: Mapping[str, np.ndarray]) -> None:
    """Set the parameters from the MLX layer's, named as ``cell.weight`` and so on.

    Raises:
        RuntimeError: A name or shape doesn't fit.
    """
    state = {name.removeprefix("cell."): torch.tensor(array) for name, array in arrays.items()}
    module.load_state_dict(state)


class Pass:
    """A forward and backward pass: the loss is the sum of outputs times ``cotangent``."""

    def __init__(
        self,
        module: nn.Module,
        x: np.ndarray,
        cotangent: np.ndarray,
        device: str,
        dtype: str = "float32",
    ) -> None:
        self.module = module.to(device, getattr(torch, dtype))
        self.x = torch.tensor(x, device=device, requires_grad=True)
        self.cotangent = torch.tensor(cotangent, device=device)

    def __call__(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Outputs, and the gradients of the parameters (MLX's names) and of ``x``."""
        parameters = {f"cell.{name}": p for name, p in self.module.named_parameters()}
        parameters["x"] = self.x
        outputs = self.module(self.x)
        gradients = torch.autograd.grad((outputs * self.cotangent).sum(), [*parameters.values()])
        if self.x.device.type != "cpu":
            getattr(torch, self.x.device.type).synchronize()
        return outputs, dict(zip(parameters, gradients, strict=True))


def tlstm_pass(
    layer: Mapping[str, Any], parameters: Mapping[str, np.ndarray], *arrays_and_place: Any
) -> Pass:
    """A pass of the tLSTM; ``layer`` holds the arguments of :class:`TorchTLSTM`."""
    module = TorchTLSTM(**layer)
    copy_parameters(module, parameters)
    return Pass(module, *arrays_and_place)


def stacked_pass(
    layer: Mapping[str, Any], parameters: Mapping[str, np.ndarray], *arrays_and_place: Any
) -> Pass:
    """A pass of the stacked LSTM; ``layer`` holds its depth."""
    one = Pass(TorchStackedLSTM(layer["depth"], parameters), *arrays_and_place)
    one.module.lstm.flatten_parameters()
    return one


PASSES = {"tlstm": tlstm_pass, "stacked": stacked_pass}


def best_device(gpu: bool) -> str:
    """PyTorch's name of the GPU where one is asked for and there, else ``"cpu"``."""
    if gpu and torch.backends.mps.is_available():
        return "mps"
    return "cuda" if gpu and torch.cuda.is_available() else "cpu"


def compiles(device: str) -> bool:
    """Whether ``torch.compile`` works: it needs a C++ compiler, on an NVIDIA GPU Triton too."""
    try:
        torch.compile(torch.tanh)(torch.ones(2, device=device))
    except Exception as error:  # of a kind for each thing that can be missing
        print(f"torch.compile does not work here: {error}", file=sys.stderr)
        return False
    return True


def describe(gpu: bool) -> dict[str, Any]:
    """Version, device, threads, and whether steps can be compiled and LSTMs are cuDNN's."""
    device = best_device(gpu)
    return {
        "version": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "compiles": device != "mps" and compiles(device),
        "cudnn": device == "cuda" and torch.backends.cudnn.is_available(),
    }


def serve() -> None:
    """Answer pickled requests on standard input with pickled replies on standard output.

    ``("describe", gpu)`` answers version, device and threads; ``("load", name, key of PASSES,
    arguments)`` makes a pass; ``("check", name)`` runs it and answers outputs and gradients,
    ``("run", name)`` its seconds; ``("drop",)`` forgets all passes. The products of float32
    matrices are TF32 where MLX's are.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tf32 = os.environ.get("MLX_ENABLE_TF32", "1") != "0"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    runs: dict[str, Pass] = {}
    while True:
        try:
            request, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        reply = None
        if request == "describe":
            reply = describe(*arguments)
        elif request == "load":
            name, kind, *arguments = arguments
            runs[name] = PASSES[kind](*arguments)
        elif request == "drop":
            runs.clear()
            gc.collect()  # a module and its step refer to one another
            if "torch._dynamo" in sys.modules:
                torch.compiler.reset()  # it stops compiling after a few modules of one class
        elif request == "check":
            outputs, gradients = runs[arguments[0]]()
            reply = (
                outputs.detach().float().cpu().numpy(),
                {n: g.float().cpu().numpy() for n, g in gradients.items()},
            )
        else:
            start = time.perf_counter()
            runs[arguments[0]]()
            reply = time.perf_counter() - start
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    serve()

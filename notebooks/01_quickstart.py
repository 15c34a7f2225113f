# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart
#
# Define a tensorized LSTM, train it, watch it, save it, load it: a few minutes on two CPU cores.
#
# The task is the paper's memorization: read five symbols out of 64, then say them again.

# %%
import os
import tempfile
from pathlib import Path

import mlx_tlstm  # before MLX: it loads a fast BLAS

# isort: split
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_tlstm import SequenceModel, make_layer
from mlx_tlstm.tasks import Memorization
from mlx_tlstm.training import Progress, encode, fit
from mlx_tlstm.training.runs import RunFolder
from mlx_tlstm.visualize import draw_diagonal, draw_learning_curves, record

SMALL = os.environ.get("MLX_TLSTM_NOTEBOOK_SIZE") == "small"  # as tests run it
if SMALL:
    mx.set_default_device(mx.cpu)
mx.random.seed(0)

# %% [markdown]
# ## Define
#
# `make_layer` builds the paper's configurations by name; `"2d-tlstm+cn"` has one tensor axis and
# channel normalisation. `SequenceModel` adds a read-out. Both are ordinary `mlx.nn.Module`s.

# %%
layer = make_layer("2d-tlstm+cn", input_size=65, hidden_size=100, depth=4)
model = SequenceModel(layer, output_size=65)
logits, state = model(mx.random.normal((15, 12, 65)))  # [batch, time, input]
assert logits.shape == (15, 12, 65)
model

# %% [markdown]
# Depth costs no parameters: every location of the hidden tensor uses the same kernel. Only the
# normalisation has a gain and a bias for each location.

# %%
for depth in (1, 4, 16):
    layer = make_layer("2d-tlstm+cn", 65, 100, depth)
    sizes = {name: array.size for name, array in tree_flatten(layer.parameters())}
    norm = sum(size for name, size in sizes.items() if "norm" in name)
    assert norm == 2 * depth * 100
    print(f"L = {depth}: {sum(sizes.values()) - norm:,} parameters, {norm:,} of the normalisation")

# %% [markdown]
# ## Train
#
# A `TrainingConfig` says all that decides a run; each task has a quick one and the paper's. This
# task's quick one is a network with two tensor axes, 4 × 4 locations, which learns from far fewer
# samples. `fit` trains it into a run folder, and stops when all test symbols are right. From a
# terminal `python -m mlx_tlstm.train` does the same.

# %%
config = Memorization.quick()
if SMALL:
    config = config.replace(length=1, hidden_size=32, depth=2, samples=3000, eval_every=1000)

folder = tempfile.TemporaryDirectory()
run = Path(folder.name) / "run"
result = fit(config, run, [Progress(bar=False)])
print(f"\n{result.test['accuracy']:.1%} of the test symbols right after {result.best['samples']:,}")

# %% [markdown]
# ## Watch
#
# The run folder has a record of each evaluation, and the weights. `--track tensorboard` (or
# `trackio`, `wandb`) follows a run elsewhere.

# %%
losses = [row["evaluation_loss"] for row in RunFolder.open(run).read_metrics()]
assert losses[-1] < losses[0]
if not SMALL:
    assert result.solved
    assert result.best["accuracy"] == 1.0
draw_learning_curves([RunFolder.open(run)])

# %% [markdown]
# ## Save and load
#
# A saved model is a folder of two files, and loading it runs no code. `mlx_tlstm.load` takes such
# a folder, a run folder, or a repository of the Hugging Face hub.

# %%
trained = mlx_tlstm.load(run)
trained.save(Path(folder.name) / "my-model")
print(sorted(path.name for path in (Path(folder.name) / "my-model").iterdir()))

again = mlx_tlstm.load(Path(folder.name) / "my-model")
x = mx.random.normal((1, 12, 65))
assert mx.array_equal(again(x)[0], trained(x)[0])  # bit for bit
print(again.metadata.command)
print(dict(again.metadata.metrics))

# %% [markdown]
# ## Ask it
#
# Any five of the symbols, and dashes for the answer to come.

# %%
text = "MLX17"[: config.length]
inputs = Memorization.encode(f"-{text}{'-' * (config.length + 1)}")
x = encode(inputs[None], again.layer.cell.input_size, mx.float32)
logits, _ = again(x)
answer = Memorization.decode(np.array(mx.argmax(logits[0], axis=-1)))
print("read", Memorization.decode(inputs))
print("said", answer)
if not SMALL:
    assert answer == "-" * 6 + text + "-"

# %% [markdown]
# ## Look inside
#
# The paper's Fig. 6 for this example: what the memory cell holds at each location of the diagonal,
# step by step, from the input (top) to the output (bottom), where the answer comes out L - 1 = 3
# steps late. `02_memory_cells` does this for all five tasks, and says what can be read off.

# %%
recording = record(again.layer, x)
folder.cleanup()
draw_diagonal(recording, 0, list(Memorization.decode(inputs)), predictions=list(answer))

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
# # Bring your own model
#
# `TLSTM`, `TRNN` and `StackedLSTM` are ordinary `mlx.nn.Module`s. This notebook puts one into a
# model and a training loop that know nothing of this package, and then shows what one needs next:
# carrying state, streams, one step at a time, half precision, freezing, and who runs the kernels.
# At its end the cell is one's own too.

# %%
import os
import tempfile
from pathlib import Path

from mlx_tlstm import (  # before MLX: it loads a fast BLAS
    TLSTM,
    VARIANTS,
    CellVariant,
    SequenceModel,
    StreamingSession,
    TLSTMCell,
    load,
    scan,
)

# isort: split
import mlx.core as mx
import numpy as np
from matplotlib import pyplot as plt
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_map

from mlx_tlstm.tasks import Memorization
from mlx_tlstm.training import encode, fit
from mlx_tlstm.visualize import draw_learning_curves, record

SMALL = os.environ.get("MLX_TLSTM_NOTEBOOK_SIZE") == "small"  # as tests run it
if SMALL:
    mx.set_default_device(mx.cpu)
mx.random.seed(0)

# %% [markdown]
# ## A model of one's own
#
# Symbols are embedded, a tLSTM reads them, a head answers at each step. The layer takes `[batch,
# time, width]` and returns its outputs and its state.

# %%
SYMBOLS, WIDTH, HIDDEN = 8, 16, 32


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, WIDTH)
        self.recurrent = TLSTM(WIDTH, HIDDEN, tensor_size=2, norm="channel")
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(HIDDEN, SYMBOLS)

    def __call__(self, symbols, state=None):
        y, state = self.recurrent(self.embedding(symbols), state)
        return self.head(self.dropout(y)), state


model = Tagger()
model

# %% [markdown]
# ## A training loop of one's own
#
# The task: say the symbol that came `LAG` steps ago. Gradients come from `nn.value_and_grad`, and
# any optimizer of MLX takes them. One `mx.eval` a step is enough.

# %%
LAG, T = 3, 16
STEPS = 60 if SMALL else 600


def batch(size):
    symbols = mx.random.randint(0, SYMBOLS, (size, T))
    return symbols, mx.roll(symbols, LAG, axis=1)


def loss_of(model, symbols, targets):
    logits, _ = model(symbols)
    # The first LAG steps have nothing to say yet.
    return nn.losses.cross_entropy(logits[:, LAG:], targets[:, LAG:], reduction="mean")


def train(model, steps, learning_rate=5e-3):
    optimizer = optimizers.AdamW(learning_rate)
    loss_and_gradients = nn.value_and_grad(model, loss_of)
    losses = []
    model.train()
    for _ in range(steps):
        loss, gradients = loss_and_gradients(model, *batch(32))
        gradients, _ = optimizers.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        losses.append(loss.item())
    return losses


def accuracy(model):
    model.eval()
    symbols, targets = batch(200)
    right = mx.argmax(model(symbols)[0], axis=-1) == targets
    return right[:, LAG:].mean().item()


losses = train(model, STEPS)
print(f"after {STEPS} steps: {accuracy(model):.1%} right")
assert losses[-1] < losses[0] / 1.1
if not SMALL:
    assert accuracy(model) > 0.99

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(losses)
axes.axhline(np.log(SYMBOLS), color="0.5", linestyle=":", label="guessing")
axes.set(xlabel="training step", ylabel="loss (nats)", ylim=(0, None))
_ = axes.legend()

# %% [markdown]
# ## Saving
#
# MLX's own way does for a model of one's own. (`SequenceModel`, a layer with its read-out, has
# `save` and `mlx_tlstm.load`, which need no class to be defined.)

# %%
symbols, _ = batch(4)
with tempfile.TemporaryDirectory() as folder:
    path = str(Path(folder) / "tagger.safetensors")
    model.save_weights(path)
    again = Tagger()
    again.load_weights(path)
again.eval()
assert mx.array_equal(again(symbols)[0], model(symbols)[0])

# %% [markdown]
# ## State: long sequences in parts
#
# The state after the last input goes into the next call, and the outputs are those of one call on
# the whole. Between training steps, `mx.stop_gradient` on the state is truncated backpropagation.

# %%
whole, _ = model(symbols)
first, state = model(symbols[:, :5])
state = tree_map(mx.stop_gradient, state)
second, state = model(symbols[:, 5:], state)
assert mx.allclose(mx.concatenate([first, second], axis=1), whole, atol=1e-4)
print({name: array.shape for name, array in state._asdict().items()})

# %% [markdown]
# ## A stream: inputs one by one
#
# An answer leaves the tensor `delay` = L - 1 steps after its input. A call waits for it, with L -
# 1 more steps; `stream` does not: each input costs one step, and what comes out answers the input
# `delay` steps before.

# %%
layer = model.recurrent
delay = layer.delay
state, answers = None, []
for t in range(T):
    y, state = layer.stream(model.embedding(symbols[:, t : t + 1]), state)
    answers.append(model.head(y[:, 0]))
assert delay == 1
assert mx.allclose(mx.stack(answers[delay:], axis=1), whole[:, :-delay], atol=1e-4)

# %% [markdown]
# `StreamingSession` does the counting, and flushes the last answers out at the end. It takes a
# `SequenceModel`, which may be made of a layer and a head that one has already.

# %%
sequence_model = SequenceModel(layer, SYMBOLS)
sequence_model.readout = model.head
session = StreamingSession(sequence_model.eval())
answers = [session.push(model.embedding(symbols[:, t])) for t in range(T)]
assert answers[:delay] == [None] * delay
answers = answers[delay:] + session.flush()
assert mx.allclose(mx.stack(answers, axis=1), whole, atol=1e-4)

# %% [markdown]
# ## A loop over single steps
#
# Where the next input depends on the last output, as in a decoder or a policy, the cell is the
# right piece: `cell(x, state)` is one time step, and `cell.output(state)` reads the output's
# corner. Here an untrained decoder feeds itself. Note what depth means then: the output at a step
# answers the input L - 1 steps before.

# %%
cell = TLSTMCell(WIDTH, HIDDEN, tensor_size=2)
embedding, head = nn.Embedding(SYMBOLS, WIDTH), nn.Linear(HIDDEN, SYMBOLS)
state = cell.initial_state(batch_size=2)
symbol = mx.array([0, 1])
read, outputs = [], []
for _ in range(6):
    read.append(symbol)
    state = cell(embedding(symbol), state)
    outputs.append(cell.output(state))
    symbol = mx.argmax(head(outputs[-1]), axis=-1)

# A layer with this cell gives the same in one call.
twin = TLSTM(WIDTH, HIDDEN, tensor_size=2)
twin.cell = cell
y, _ = twin.stream(embedding(mx.stack(read, axis=1)))
assert mx.allclose(mx.stack(outputs, axis=1), y, atol=1e-5)

# %% [markdown]
# ## Half precision
#
# `set_dtype` turns the weights, and with them the hidden state, to bfloat16 or float16. The
# memory cell stays float32: it sums over the whole sequence, where half precision would lose
# small contributions.


# %%
def nbytes(model):
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


half = Tagger()
half.update(model.parameters())
half.set_dtype(mx.bfloat16)
half.eval()
logits, state = half(symbols)
assert (logits.dtype, state.hidden.dtype) == (mx.bfloat16, mx.bfloat16)
assert state.cell.dtype == mx.float32
assert 2 * nbytes(half) == nbytes(model)
print(f"{nbytes(model):,} bytes in float32: {accuracy(model):.1%} right")
print(f"{nbytes(half):,} bytes in bfloat16: {accuracy(half):.1%} right")
assert abs(accuracy(half) - accuracy(model)) < 0.05

# %% [markdown]
# ## Freezing
#
# As in any MLX module. A frozen tLSTM under a new head, as in transfer learning; and only the
# biases and the normalisation of the tLSTM released again.


# %%
def copies(module):
    return {name: np.array(array) for name, array in tree_flatten(module.parameters())}


def changed(before, after):
    return sorted(name for name in before if (before[name] != after[name]).any())


def trainable(module):
    return sorted(name for name, _ in tree_flatten(module.trainable_parameters()))


model.recurrent.freeze()
model.embedding.freeze()
model.head = nn.Linear(HIDDEN, SYMBOLS)
before = copies(model)
train(model, 5)
assert changed(before, copies(model)) == trainable(model) == ["head.bias", "head.weight"]

model.recurrent.cell.unfreeze(keys=["bias", "gain"])
before = copies(model)
train(model, 5)
print(*trainable(model), sep="\n")
assert changed(before, copies(model)) == trainable(model)
_ = model.unfreeze()

# %% [markdown]
# ## Kernels on and off
#
# On an Apple GPU, and on MLX's CUDA back end, a tLSTM runs its own kernels; on a CPU plain
# operations. `backend="ops"`, which may be set at any time, takes plain operations everywhere,
# and so does the environment variable `MLX_TLSTM_BACKEND=ops`. What this machine lacks is an
# error, which says why.

# %%
x = mx.random.normal((2, T, WIDTH))
default, _ = layer(x)  # backend=None: what suits the device
for backend in ("ops", "metal", "cuda"):
    layer.cell.backend = backend
    try:
        y, _ = layer(x)
    except ValueError as error:
        print(error)
    else:
        print(f"{backend} runs here")
        assert backend == "ops" or mx.default_device().type == mx.gpu
        assert mx.allclose(y, default, rtol=1e-3, atol=1e-3)
layer.cell.backend = None

# %% [markdown]
# With `recompute` a layer keeps no gate activations for the backward pass and computes them anew:
# less memory, the same gradients.


# %%
def gradients_of(layer):
    layer.train()
    return nn.value_and_grad(layer, lambda layer: (layer(x)[0] ** 2).mean())(layer)[1]


kept = gradients_of(layer)
layer.cell.recompute = True
anew = gradients_of(layer)
for (name, a), (_, b) in zip(tree_flatten(kept), tree_flatten(anew), strict=True):
    assert mx.allclose(a, b, rtol=1e-4, atol=1e-6), name

# %% [markdown]
# ## A cell of one's own
#
# MLX has no loop over time, and its gradient of `x[:, t]` is an array as large as `x`, so that the
# loop one writes first takes time in proportion to T². `Recurrent` makes a layer of any cell with
# `__call__(x, state)`, which returns an output and the next state, and `initial_state`. Here is a
# GRU.


# %%
class GRUCell(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.gates = nn.Linear(input_size + hidden_size, 2 * hidden_size)
        self.new = nn.Linear(input_size + hidden_size, hidden_size)
        self.hidden_size = hidden_size

    def initial_state(self, batch_size):
        return mx.zeros((batch_size, self.hidden_size))

    def __call__(self, x, h):
        gates = mx.sigmoid(self.gates(mx.concatenate([x, h], axis=-1)))
        reset, update = mx.split(gates, 2, axis=-1)
        new = mx.tanh(self.new(mx.concatenate([x, reset * h], axis=-1)))
        h = update * h + (1 - update) * new
        return h, h


# %% [markdown]
# With a name it is a variant as ours are, for training with checkpoints and evaluations. The task
# is the paper's memorization: read four random symbols, then say them.

# %%
VARIANTS["gru"] = CellVariant(GRUCell)
settings = (
    Memorization.quick()
    .for_variant("gru")
    .replace(length=4, hidden_size=128, batch_size=32, learning_rate=5e-3)
    .replace(samples=32 * (40 if SMALL else 1500), eval_every=320 if SMALL else 1600)
)
with tempfile.TemporaryDirectory() as folder:
    metrics = fit(settings, folder).test
    own = load(folder)  # the best weights
    curve = draw_learning_curves(folder)
task = Memorization(settings)
print({name: metrics[name] for name in ("samples", "accuracy", "sequence_accuracy")})
assert metrics["loss"] < np.log(task.output_size) / 2
if not SMALL:
    assert metrics["accuracy"] > 0.99
curve

# %% [markdown]
# What takes a layer takes this one: a session, `visualize.record`, `generate`; and `save`, though
# a program that loads the model has to put the class into `VARIANTS` first. Below are 40 of the
# 128 hidden units. Symbols are read at steps 2 to 5 and said at steps 6 to 9. Many units hold a
# value over several steps; others change as each symbol is said.

# %%
own.eval()
inputs = next(iter(task.eval_batches("test"))).inputs[:1]
x = encode(inputs, task.input_size, mx.float32)
recording = record(own.layer, x)
session = StreamingSession(own)
pushed = mx.stack([session.push(x[:, t]) for t in range(x.shape[1])], axis=1)
assert mx.allclose(pushed, own(x)[0], atol=1e-3)

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
image = axes.imshow(
    recording.outputs[0, :, :40].T,
    cmap="RdBu",
    vmin=-1,
    vmax=1,
    aspect="auto",
    extent=(0.5, len(recording.outputs[0]) + 0.5, 40.5, 0.5),
)
figure.colorbar(image, ax=axes, label="value")
_ = axes.set(xlabel="step", ylabel="hidden unit", title="40 of the 128 hidden units")

# %% [markdown]
# Under `Recurrent` is `scan`, as JAX has it: `step(state, x)` returns the next state and an output,
# each an array or a tree of them, and whatever else the step reads gets its gradient too. With
# `checkpoint=N` only every N-th state is kept for the gradient, and the rest computed anew: here
# for the mean square of an untrained cell's outputs over a long sequence of noise.


# %%
def power(cell, xs, checkpoint):
    def step(h, x):
        output, h = cell(x, h)
        return h, (output**2).mean()

    _, powers = scan(step, cell.initial_state(32), xs, checkpoint=checkpoint)
    return powers.mean()


T_LONG = 36 if SMALL else 400
cell, xs = GRUCell(task.input_size, 128), mx.random.normal((T_LONG, 32, task.input_size))
by_checkpoint, peaks = {}, {}
for checkpoint in (None, 6 if SMALL else 20):
    mx.eval(xs)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    by_checkpoint[checkpoint] = nn.value_and_grad(cell, power)(cell, xs, checkpoint)[1]
    mx.eval(by_checkpoint[checkpoint])
    peaks[checkpoint] = mx.get_peak_memory() - before
    print(f"checkpoint={checkpoint}: {peaks[checkpoint] / 2**20:.1f} MiB at the peak")
kept, anew = by_checkpoint.values()
for (name, a), (_, b) in zip(tree_flatten(kept), tree_flatten(anew), strict=True):
    assert mx.linalg.norm(a - b) < 1e-4 * mx.linalg.norm(a), name
most, least = peaks.values()
assert least < most

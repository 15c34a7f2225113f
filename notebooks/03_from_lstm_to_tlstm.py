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
# # From the LSTM to the tensorized LSTM
#
# The equations of [the paper](https://arxiv.org/abs/1711.01577), the code that computes them, and
# what follows from them. All networks here have random weights: the properties hold by
# construction, before any training. Each one is checked where it is claimed, by an `assert` that
# fails where it does not hold.

# %%
import os

from mlx_tlstm import TLSTM, StackedLSTM, TLSTMState, make_layer  # before MLX: it loads a fast BLAS

# isort: split
import mlx.core as mx
import numpy as np
from matplotlib import pyplot as plt
from mlx.utils import tree_flatten

from mlx_tlstm.visualize import (
    arrival_steps,
    diagonal_means,
    draw_arrival,
    draw_diagonal,
    draw_memory_offsets,
    draw_receptive_field,
    input_reach,
    memory_offsets,
    receptive_field,
    record,
)

SMALL = os.environ.get("MLX_TLSTM_NOTEBOOK_SIZE") == "small"  # as tests run it
if SMALL:
    mx.set_default_device(mx.cpu)

R, M = 3, 16  # width of an input, channels
T = 8 if SMALL else 16  # inputs
mx.random.seed(0)
x = mx.random.normal((1, T, R))

# %% [markdown]
# ## 1. A stacked LSTM, skewed
#
# Layer $l$ of a stacked LSTM reads its own past and the layer below, at the same time step:
# $\mathbf h^{l-1}_t$ and $\mathbf h^l_{t-1}$. The layers of a time step therefore wait for each
# other, and a step costs $L$ matrix products in a row.
#
# Let layer $l$ work $l-1$ steps late. Now all that it reads comes from the step before. All
# layers can be computed at once, as the locations $p = 1 \dots P$ of one tensor $\mathbf H_t \in
# \mathbb R^{P \times M}$: by a convolution of kernel size $K = 2$, since the layers share their
# weights. The output comes out $L-1$ steps later.
#
# This is a tLSTM without memory convolution, and it takes the stacked LSTM's weights as they are.

# %%
L = 5
stacked = StackedLSTM(R, M, depth=L)
stacked.cell.weight = 2 * stacked.cell.weight  # so that the deeper layers show in the picture
stacked.cell.bias[:M] = 0.0  # the new content's
skewed = TLSTM(R, M, tensor_size=L, kernel_size=2, memory_convolution=False)
skewed.update(stacked.parameters())

assert (stacked.delay, skewed.delay) == (0, L - 1)
assert mx.allclose(skewed(x)[0], stacked(x)[0], atol=1e-6)

by_layer, by_location = record(stacked, x), record(skewed, x)
for layer in range(L):  # what layer l computes at step t, location l does at step t + l - 1
    late = by_location.cell[:, layer : layer + T, layer]
    assert np.allclose(late, by_layer.cell[:, :, layer], atol=1e-6)

figure, axes = plt.subplots(2, 1, figsize=(8, 4.6), layout="constrained")
draw_diagonal(by_layer, axes=axes[0])
draw_diagonal(by_location, axes=axes[1])
axes[0].set_xlim(axes[1].get_xlim())
axes[0].set_title("stacked LSTM: memory cell, mean over channels", fontsize="medium")
_ = axes[1].set_title("the same, skewed: row l comes l - 1 steps later", fontsize="medium")

# %% [markdown]
# Why is the bias of the new content zero here? The skewed network's deeper locations run a few
# steps before anything has reached them, and with a bias they would fill their memory meanwhile.
# With any other bias the two differ in where they start, and in nothing else.

# %%
stacked.cell.bias[:M] = 0.1
skewed.update(stacked.parameters())
assert not mx.allclose(skewed(x)[0], stacked(x)[0], atol=1e-3)

# Layer l, from 0, starts where location l is after its first l steps.
before = record(skewed, x)
start = stacked.cell.initial_state(1)
for layer in range(1, L):
    start.hidden[:, layer] = mx.array(before.hidden[:, layer - 1, layer])
    start.cell[:, layer] = mx.array(before.cell[:, layer - 1, layer])
assert mx.allclose(skewed(x)[0], stacked(x, start)[0], atol=1e-6)

# %% [markdown]
# ## 2. One step of a tLSTM
#
# From here on the paper changes the model: a larger kernel also reads the location after
# (feedback), and the memory cell is convolved as well. One step with one tensor axis:
#
# $$\begin{aligned}
# \mathbf H^{cat}_{t-1} &= [\,\mathbf x_t \mathbf W^x + \mathbf b^x;\ \mathbf H_{t-1}] & (5)\\
# [\mathbf A^g_t, \mathbf A^i_t, \mathbf A^f_t, \mathbf A^o_t, \mathbf A^q_t]
#   &= \mathbf H^{cat}_{t-1} \circledast \{\mathbf W^h, \mathbf b^h\} & (14)\\
# [\mathbf G_t, \mathbf I_t, \mathbf F_t, \mathbf O_t, \mathbf Q_t]
#   &= [\tanh(\mathbf A^g_t), \sigma(\mathbf A^i_t), \sigma(\mathbf A^f_t), \sigma(\mathbf A^o_t),
#      \mathrm{softmax}(\mathbf A^q_t)] & (15)\\
# \mathbf C^{conv}_{t-1} &= \mathbf C_{t-1} \circledast \mathbf W^c_t(p), \quad
#      \mathbf W^c_t(p) = \mathbf q_{t,p} & (16, 17)\\
# \mathbf C_t &= \mathbf G_t \odot \mathbf I_t + \mathbf C^{conv}_{t-1} \odot \mathbf F_t & (18)\\
# \mathbf H_t &= \tanh(\mathbf C_t) \odot \mathbf O_t & (19)
# \end{aligned}$$


# %%
def step(cell, x, H, C):
    """H_t and C_t, each [P, M], from the input [R] and the state before it."""
    P, K = cell.geometry.tensor_size[0], cell.geometry.kernel_size[0]
    H_cat = mx.concatenate([cell.input_projection(x)[None], H])  # Eq. 5  [P + 1, M]
    padded = mx.pad(H_cat, [(K // 2 - 1, K - 1 - K // 2), (0, 0)])  # zeros beyond the tensor
    A = mx.conv1d(padded[None], cell.weight)[0] + cell.bias  # Eq. 14  [P, 4 M + K]
    G, I, F, O, Q = mx.split(A, [M, 2 * M, 3 * M, 4 * M], axis=-1)
    G, I, F, O = mx.tanh(G), mx.sigmoid(I), mx.sigmoid(F), mx.sigmoid(O)  # Eq. 15
    Q = mx.softmax(Q, axis=-1)  # [P, K]: a kernel for each location, the same for all channels
    taps = np.arange(P)[:, None] + np.arange(K) - K // 2  # the locations that each kernel reads
    taps = mx.array(taps.clip(0, P - 1))  # memory repeats its boundary (Appendix A.2)
    C_conv = (Q[..., None] * C[taps]).sum(axis=1)  # Eq. 17
    C = G * I + C_conv * F  # Eq. 18
    return mx.tanh(C) * O, C  # Eq. 19


for kernel_size in (2, 3, 4, 5):
    layer = TLSTM(R, M, tensor_size=L, kernel_size=kernel_size)
    recording = record(layer, x)
    H = C = mx.zeros((L, M))
    for t in range(T):
        H, C = step(layer.cell, x[0, t], H, C)
        assert np.allclose(H, recording.hidden[0, t], atol=1e-6)
        assert np.allclose(C, recording.cell[0, t], atol=1e-6)

# %% [markdown]
# The kernel weight has no location in its shape, so that **width is free**: a tensor twice as
# large holds twice as much and has the same parameters.


# %%
def parameters(layer):
    return sum(array.size for _, array in tree_flatten(layer.parameters()))


for P in (1, 2, 4, 8):
    print(f"P = {P}: {parameters(TLSTM(R, M, P)):,} parameters, {P * M} memory cells")
assert len({parameters(TLSTM(R, M, P)) for P in (1, 2, 4, 8)}) == 1

# %% [markdown]
# ## 3. Depth is delay
#
# In one step information moves as far as the kernel reaches, $(K - K \bmod 2)/2$ locations. From
# the input's corner to the output at the far one it takes
#
# $$L = \left\lceil \frac{2P}{K - K \bmod 2} \right\rceil \qquad (9)$$
#
# steps: this is the depth, and $\mathbf y_t$ is read at step $t + L - 1$. `input_reach` measures
# it: the derivative of each location's hidden state by the first input, step after step.

# %%
print("steps until each location sees an input:")
for P, K in ((5, 2), (5, 3), (5, 4), (5, 5), (8, 5)):
    layer = TLSTM(R, M, P, kernel_size=K)
    steps = arrival_steps(input_reach(layer, x[0]))
    print(f"P = {P}, K = {K}, L = {layer.depth}: {steps}")
    assert layer.depth == -(-2 * P // (K - K % 2))  # Eq. 9
    assert steps[-1] == layer.depth == layer.delay + 1

# %% [markdown]
# With two tensor axes (a "3D tLSTM") only the corner holds the input, and an $L$ times $L$ tensor
# is as deep as one axis of $L$: information takes the diagonal. The tensor grows with the square
# of the depth.

# %%
square = TLSTM(R, M, (4, 4))
steps = arrival_steps(input_reach(square, x[0]))
first, second = np.indices((4, 4)) + 1
assert (steps == np.maximum(first, second)).all()
assert square.depth == 4
draw_arrival(steps)

# %% [markdown]
# With $K = 2$ information only goes on. With $K = 3$ a location also reads the one after it, and
# what is near the output reaches the input's side again. This **feedback** is what the paper's
# variant 2D tLSTM-F goes without. Here the state of location 3 is changed, and the pictures show
# when the others notice.

# %%
PLACES, CHANGED = 6, 3


def notice(kernel_size):
    """After how many steps each location notices the change, 0 for never."""
    layer = TLSTM(R, M, PLACES, kernel_size=kernel_size)
    H, C = layer(x)[1]
    other = mx.array(H)
    other[:, CHANGED - 1] += 0.1
    runs = [record(layer, x, TLSTMState(hidden, C)).hidden[0] for hidden in (H, other)]
    return arrival_steps(np.abs(runs[0] - runs[1]).max(axis=-1))


forward, both = notice(2), notice(3)
assert forward.tolist() == [0, 0, 1, 1, 2, 3]
assert both.tolist() == [2, 1, 1, 1, 2, 3]

figure, axes = plt.subplots(2, 1, figsize=(5, 3), layout="constrained")
for picture, steps, name in zip(axes, (forward, both), ("K = 2", "K = 3"), strict=True):
    draw_arrival(steps, axes=picture)
    picture.set_title(
        f"{name}: steps until a change at location {CHANGED} is noticed", fontsize="medium"
    )

# %% [markdown]
# ## 4. Why $\mathbf y_t$ sees no future
#
# An input $\mathbf x_{t'}$ enters at step $t'$ and reaches the output's corner at step $t' + L -
# 1$. $\mathbf y_t$ is read there at step $t + L - 1$: a later input, $t' > t$, is still on its
# way. An earlier one, $t' \le t$, has had the time. So each output depends on all inputs up to
# its own and on no later one, exactly. `receptive_field` takes the derivative of each output by
# each input.
#
# Channel normalisation (section 6) keeps this, since each location has its own statistics. Layer
# normalisation takes its statistics over the whole tensor: a new input changes the mean, and with
# it the output's corner, in the same step. As $\mathbf y_t$ is read $L - 1$ steps late, it sees
# $L - 1$ inputs of its future, no more; at depth 1 none.

# %%
DEPTH = 4
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
for picture, norm in zip(axes, (None, "channel", "layer"), strict=True):
    field = receptive_field(TLSTM(R, M, (DEPTH, DEPTH), norm=norm), x[0])
    seen = DEPTH - 1 if norm == "layer" else 0  # inputs of the future
    t, s = np.indices(field.shape)
    assert (field[s <= t + seen] > 0).all()
    assert (field[s > t + seen] == 0).all()
    draw_receptive_field(field, axes=picture)
    picture.set_title(f"{norm or 'no'} normalisation", fontsize="medium")
figure.suptitle("receptive field: |∂y_t / ∂x_s| (grey: none)")

shallow = receptive_field(TLSTM(R, M, (1, 1), norm="layer"), x[0])
assert (np.triu(shallow, 1) == 0).all()

# %% [markdown]
# What follows for the user: `layer(x)` gives each output at its own place, `y[:, t]` for `x[:,
# t]`, by running $L - 1$ steps more. They are a side branch. The state that is returned is the
# one after the last input, so that a long sequence can be cut at will.

# %%
layer = make_layer("3d-tlstm+cn", R, M, depth=4)
whole, final = layer(x)
state, parts = None, []
for start, end in ((0, 1), (1, 5), (5, T)):
    y, state = layer(x[:, start:end], state)
    parts.append(y)
assert mx.allclose(mx.concatenate(parts, axis=1), whole, atol=1e-5)
assert mx.allclose(state.cell, final.cell, atol=1e-5)

# %% [markdown]
# ## 5. What the memory convolution adds
#
# Without it (Eq. 12) a location's memory is its own past: what is remembered near the input has
# to pass through $\tanh$ and gates, once for each location, to get to the output. With it, memory
# itself moves: each location mixes its neighbours' memories by its kernel $\mathbf q_{t,p}$.
#
# To see the convolution alone, the gates are held still here: nothing new comes in ($\mathbf I =
# 0$), nothing is forgotten ($\mathbf F = 1$), and the kernels are the same everywhere: even, as
# training starts, or with three quarters on one tap. One location of twelve holds a memory at the
# start; columns show what is where after each step, where 1 is what it had.

# %%
P, PLACE, FREE_STEPS = 12, 5, 4  # in that many steps the pulse touches no boundary
BEFORE, CENTRE = 0, 1  # taps of K = 3


def favour(layer, tap):
    """Start all kernels with 3/4 on one tap, which six times the odds of the others' give."""
    layer.cell.bias[4 * M + tap] = np.log(6)


def pulse(tap=None, **settings):
    """A recording of a memory at one location, with all gates held still."""
    layer = TLSTM(R, M, P, **settings)
    if tap is not None:
        favour(layer, tap)
    cell = layer.cell
    cell.weight = mx.zeros_like(cell.weight)
    cell.bias[M : 2 * M], cell.bias[2 * M : 3 * M] = -100.0, 100.0  # input, forget
    C = mx.zeros((1, P, M))
    C[:, PLACE - 1] = 1.0
    return record(layer, mx.zeros((1, FREE_STEPS, R)), TLSTMState(mx.zeros((1, P, M)), C))


pulses = {
    "no memory convolution": pulse(memory_convolution=False),
    "mostly from its own location": pulse(CENTRE),
    "even": pulse(),
    "mostly from the location before": pulse(BEFORE),
}
figure, axes = plt.subplots(2, 2, figsize=(12, 6.5), layout="constrained")
for picture, (name, recording) in zip(axes.flat, pulses.items(), strict=True):
    draw_diagonal(recording, axes=picture)
    picture.images[0].set_array(diagonal_means(recording)[0].T)  # all on one scale, of the start
    picture.set_title(name, fontsize="medium")

# %% [markdown]
# Memory without a convolution stays where it is; the gates can only let it fade. The centre tap
# keeps it in place and lets some leak to both sides, even taps spread it, and the tap before moves
# it on. How far it moves in a step is the mean offset under the kernel, which `memory_offsets`
# gives, with the sign turned: a location that reads from -1 takes in what moves +1. As long as no
# boundary is near, no memory is lost: the kernels are softmaxes, and sum to 1.


# %%
def centre_of_mass(recording):
    """Total memory, and the mean location that holds it, at each step before the boundary."""
    memory = recording.cell[0, :FREE_STEPS].mean(axis=-1)  # [steps, P]
    total = memory.sum(axis=-1)
    return total, (memory * np.arange(1, P + 1)).sum(axis=-1) / total


for name, recording in pulses.items():
    total, centre = centre_of_mass(recording)
    velocity = np.diff(np.concatenate([[PLACE], centre]))
    print(f"{name}: {abs(velocity.mean()):.3f} locations a step")
    assert np.allclose(total, 1, atol=1e-5)
    if recording.kernels is None:
        assert (recording.cell == recording.cell[:, :1]).all()
    else:
        offsets = memory_offsets(recording)[0, :FREE_STEPS, PLACE - 1, 0]
        assert np.allclose(velocity, -offsets, atol=1e-5)

# %% [markdown]
# In a real network the kernels are computed from the hidden state, anew at each location and
# step: the network decides where memory moves and where it stays. Random weights already show it.
# (The first location has none before it, and the last none after it: there the tap repeats its own
# memory.)

# %%
layer = TLSTM(R, M, 6)
favour(layer, BEFORE)
recording = record(layer, x)
assert recording.kernels[0].std(axis=0).min() > 0  # over the steps
assert recording.kernels[0].std(axis=1).min() > 0  # over the locations
draw_memory_offsets(recording)

# %% [markdown]
# It matters for gradients. Here is the derivative of an output by the input $n$ steps before it,
# with and without memory convolution: the mean over the outputs, the median over random starts,
# depth 6, forget bias 4. Without it, an input has to cross six locations through $\tanh$ and
# gates in as many steps if it is to be answered at once ($n = 0$). Memory that moves takes it
# there.

# %%
SEEDS = 2 if SMALL else 8


def reach_of_gradients(tap=None, **settings):
    """Median over starts of |∂y_t / ∂x_{t-n}|, averaged over t, for n = 0 … T - 1."""
    reaches = []
    for seed in range(SEEDS):
        mx.random.seed(seed)
        layer = TLSTM(R, M, 6, forget_bias=4.0, **settings)
        if tap is not None:
            favour(layer, tap)
        field = receptive_field(layer, mx.random.normal((T, R)))
        reaches.append([np.diagonal(field, -n).mean() for n in range(T)])
    return np.median(reaches, axis=0)


reaches = {
    "none": reach_of_gradients(memory_convolution=False),
    "even": reach_of_gradients(),
    "mostly from the location before": reach_of_gradients(BEFORE),
}
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for (name, reach), line in zip(reaches.items(), ("-", "--", "-."), strict=True):
    axes.semilogy(range(T), reach, line, label=name)
axes.set(xlabel="steps n between input and output", ylabel="|∂y_t / ∂x_(t-n)|")
axes.grid(alpha=0.3)
axes.legend(title="memory convolution")

at_once = [reach[0] for reach in reaches.values()]
print("n = 0:", {name: f"{reach[0]:.1g}" for name, reach in reaches.items()})
assert at_once[2] > 5 * at_once[1] > 25 * at_once[0]

# %% [markdown]
# ## 6. Channel normalisation
#
# $$\mathbf H_t = \tanh(\mathrm{CN}(\mathbf C_t; \Gamma, \mathbf B)) \odot \mathbf O_t \qquad (31)$$
#
# normalises the $M$ channels of each location by their own mean and deviation (Eq. 20, 21). The
# memory cell itself stays as it is: only what the gates let out is normalised.

# %%
layer = TLSTM(R, M, (3, 3), norm="channel")
recording = record(layer, x)
C = recording.cell
centred = C - C.mean(axis=-1, keepdims=True)
C_hat = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)  # Eq. 21
gain, bias = np.array(layer.cell.norm.gain), np.array(layer.cell.norm.bias)
assert gain.shape == (3, 3, M)
H = np.tanh(C_hat * gain + bias) * recording.output_gate  # Eq. 31
assert np.allclose(recording.hidden, H, atol=1e-5)

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
# # Memory cells
#
# What a trained tLSTM does with its memory, on each of the paper's five tasks: its Section 3.4
# and Fig. 6, on networks that ship with this repository (`models/`, see `README.md`). All but one
# are smaller than the paper's, so that what they do may differ. Each section quotes the paper,
# shows the picture, and says what it shows; numbers that are claimed are asserted.

# %%
import dataclasses
import os
from pathlib import Path

import mlx_tlstm  # before MLX: it loads a fast BLAS

# isort: split
import mlx.core as mx
import numpy as np
from matplotlib import pyplot as plt

from mlx_tlstm.tasks import PermutedMnist, make_task
from mlx_tlstm.tasks.addition import addition_rows
from mlx_tlstm.training import encode, evaluate, format_metrics
from mlx_tlstm.visualize import (
    diagonal_means,
    draw_diagonal,
    draw_memory_maps,
    draw_memory_offsets,
    memory_offsets,
    record,
)

SMALL = os.environ.get("MLX_TLSTM_NOTEBOOK_SIZE") == "small"  # as tests run it
if SMALL:
    mx.set_default_device(mx.cpu)
MODELS = Path("models").resolve()
rng = np.random.default_rng(0)
recordings = {}  # of each network, for the last section

# %% [markdown]
# Tools: `show` draws Fig. 6 for one example, with what was read, what should be said and what was
# said. `difference` compares two recordings of one network on two sets of inputs that are alike
# but for something: how far apart are the memory cells at each step and location, in the mean
# over examples? Its picture shows where in the network that something is remembered, and how
# long.


# %%
def load(name):
    model = mlx_tlstm.load(MODELS / name)
    model.set_dtype(mx.float32)  # the larger ones are stored in float16
    training = model.metadata.training
    print(
        f"{training.task}, length {training.length}; {training.variant}, L={training.depth}, "
        f"M={training.hidden_size}; on the test split {format_metrics(model.metadata.metrics)}"
    )
    return model


def run(model, inputs):
    """A recording over symbols [B, T] or values [B, T, R]."""
    return record(model.layer, encode(inputs, model.layer.cell.input_size, mx.float32))


def probabilities(model, recording):
    """What the network gives each class at each step, [B, T, S]."""
    logits = model.readout(mx.array(recording.outputs))
    return np.array(mx.softmax(logits, axis=-1))


def show(model, task, batch, example=0):
    recording = run(model, batch.inputs[example : example + 1])
    said = probabilities(model, recording)[0].argmax(axis=-1)
    rows = (batch.inputs[example], batch.targets[example], said)
    return draw_diagonal(recording, 0, *(list(task.decode(row)) for row in rows))


def difference(recording, other):
    """A recording of one example whose H and C are the distances of two, over the channels."""
    pairs = {name: (getattr(recording, name), getattr(other, name)) for name in ("hidden", "cell")}
    distances = {
        name: np.linalg.norm(a - b, axis=-1, keepdims=True).mean(axis=0, keepdims=True)
        for name, (a, b) in pairs.items()
    }
    return dataclasses.replace(recording, **distances)


def at_output(trace):
    """How much of it the output shows at each step, [T']."""
    return trace.hidden[0].reshape(trace.steps, -1)[:, -1]


def draw_differences(differences):
    """One picture below the other, all on one scale, whose 1 is the largest value of all."""
    largest = max(diagonal_means(each).max() for each in differences.values())
    figure, axes = plt.subplots(len(differences), 1, figsize=(8, 2.2 * len(differences)))
    figure.set_layout_engine("constrained")
    for picture, (name, recording) in zip(axes, differences.items(), strict=True):
        draw_diagonal(recording, axes=picture)
        picture.images[0].set_array(diagonal_means(recording)[0].T / largest)
        picture.set_title(name, fontsize="medium")


# %% [markdown]
# ## Memorization
#
# > the network behaves like a shift register that continues to move the input symbol to the
# > output location at the correct timestep

# %%
model = load("memorization")
task = make_task(model.metadata.training)
n, delay = task.config.length, model.layer.delay
measured, saved = evaluate(model, task, "test"), model.metadata.metrics
assert abs(measured["accuracy"] - saved["accuracy"]) < 0.005

batch = next(iter(task.eval_batches("test")))
show(model, task, batch)

# %% [markdown]
# The means alone do not say which symbol is where. So we change one symbol in all 100 test
# sequences.


# %%
def traces_of_symbols(model, inputs):
    """For each symbol to memorize, from 1, the difference that it makes."""
    recording, traces = run(model, inputs), {}
    for place in range(1, n + 1):
        changed = inputs.copy()
        changed[:, place] = (changed[:, place] + rng.integers(1, 64, len(changed))) % 64
        traces[place] = difference(recording, run(model, changed))
    return recording, traces


recording, traces = traces_of_symbols(model, batch.inputs)
recordings["memorization"] = recording
shown = (1, (n + 1) // 2, n)
draw_differences({f"symbol {k} of {n} is changed": traces[k] for k in shown})

# %% [markdown]
# Each symbol goes down to the output's location, whose hidden state (not drawn) shows it most at
# the step at which it is said. But it does not move all the time. The first symbol runs through to
# the output's location and waits there until it is asked for. The second waits behind it at
# location 3, the third at 2; the last two stay where they came in. When the first one is said all
# others move on, one location a step.
#
# The kernels of the memory convolution say the same. While symbols come in, memory comes at
# locations 2 and on for the larger part from the location before (-1), and when they go out it all
# does; in between it holds still (0). So ours is a shift register with a stop, or a queue, where
# the paper's description has it move on all the time. A queue is what the task asks for: a symbol
# has $n + L$ steps to go and $L$ locations for them.

# %%
first_said = n + 2 + delay  # steps count from 1
for place, trace in traces.items():
    assert at_output(trace).argmax() + 1 == first_said + place - 1

# All symbols are read and have come to rest; none is said yet.
waiting = {k: int(diagonal_means(trace)[0, n + 2].argmax()) + 1 for k, trace in traces.items()}
print("locations at which the symbols wait:", waiting)
assert list(waiting.values()) == [4, 3, 2, 1, 1]

offsets = memory_offsets(recording)[:, :, 1:, 0].mean(axis=(0, 2))  # by step, without location 1
assert offsets[1:n].mean() < -0.5
assert np.abs(offsets[n + 1 : first_said - 1]).max() < 0.1
assert offsets[first_said : first_said + n - 1].max() < -0.8
draw_memory_offsets(recording)

# %% [markdown]
# ### Two tensor axes, the paper's size
#
# A "3D tLSTM" has room beside the diagonal, which Fig. 6 leaves out. Here are all locations of
# one with 7 × 7 that memorizes 20 symbols, as many as the paper's: what it makes of the tenth, in
# the mean over 20 sequences.

# %%
model = load("memorization-20")
task = make_task(model.metadata.training)
n, delay = task.config.length, model.layer.delay
batch = next(iter(task.eval_batches("test")))
recording, traces = traces_of_symbols(model, batch.inputs[:20])
recordings["memorization-20"] = recording

place = 10
figure = draw_memory_maps(traces[place])
title = f"symbol {place} of {n} is changed (above each map its step)"
figure.axes[0].set_title(title, fontsize="medium")
figure

# %% [markdown]
# It comes in at the corner, at step 11, and is at the opposite corner at step 37, when it is said
# (37 is not among the maps; at 36 it is next to the corner).
# In between it is a front across the tensor: an oblique line that moves to the right, then a
# column that stands still, then an oblique line again that runs together at the corner. Where are
# the others at the same time? Below is the centre of what a symbol has changed, along each axis
# (it stays short of the corner, since traces that a symbol has left elsewhere count too).


# %%
def centres(trace):
    """The mean location along both axes, from 1, weighted by how much has changed: [T', 2]."""
    changed = trace.cell[0, ..., 0]
    locations = np.moveaxis(np.indices(changed.shape[1:]) + 1, 0, -1)
    total = changed.sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):  # before it comes in
        return np.tensordot(changed, locations, 2) / total[:, None]


figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for place in (1, 5, 10, 15, 20):
    steps = np.arange(place + 1, n + 1 + delay + place + 1)  # from 1, until it is said
    path = centres(traces[place])[steps - 1]
    for axis, picture in enumerate(axes):
        picture.plot(steps, path[:, axis], label=f"symbol {place}")
        picture.set(xlabel="step", title=f"axis {axis + 1}", ylim=(1, 7))
        picture.grid(alpha=0.3)
axes[0].set_ylabel("centre (location)")
_ = axes[1].legend(fontsize="small")

# %% [markdown]
# Along the first axis the symbols 1 to 15 run to about the middle within six to ten steps, and stay
# about there until those before them are said; the last one goes halfway, and back while it waits.
# Along the second it moves on slowly, a location in about four steps. When all are
# read (step 21) they stand in line along it, the first ones at the far end; and when they are
# said, from step 28, the others move on. So this one too is a shift register with a stop. What it
# shifts are not single locations but fronts, each one symbol in many places.

# %%
for place, trace in traces.items():
    assert at_output(trace).argmax() + 1 == n + 2 + delay + place - 1

said = n + 1 + delay  # the first step at which a symbol is said, from 0
second = {place: centres(trace)[:, 1] for place, trace in traces.items()}
line = [path[said - 2] for path in second.values()]
print("where the symbols stand in line along axis 2:", np.round(line, 1))
assert np.corrcoef(np.arange(n), line)[0, 1] < -0.95
for place in (10, 15):
    waits = np.ptp(second[place][n + 1 : said])
    moves = second[place][said + place - 1] - second[place][said - 1]
    print(f"symbol {place}: {waits:.1f} locations while it waits, then {moves:.1f}")
    assert moves > 2 * waits

for place in (1, 5, 10):
    entered = place  # the step's index
    path = centres(traces[place])[entered : entered + 15]
    print(f"symbol {place}: after 14 steps at {path[-1][0]:.1f}, {path[-1][1]:.1f}")
    assert np.allclose(path[0], 1)
    assert path[6, 0] > 3 > path[6, 1]  # quick along one axis
    assert 1.5 < path[6, 1] < path[10, 1] < path[14, 1]  # and slow along the other
    largest = traces[place].cell[0, entered + 8 : n + delay + place, ..., 0]
    shares = largest.max(axis=(1, 2)) / largest.sum(axis=(1, 2))
    assert np.median(shares) < 0.2

# %% [markdown]
# ## Addition
#
# > the first integer is gradually encoded into memories and then interacts (performs addition)
# > with the second integer, producing the sum

# %%
model = load("addition")
task = make_task(model.metadata.training)
n, delay = task.config.length, model.layer.delay
show(model, task, next(iter(task.eval_batches("test"))))

# %% [markdown]
# Where is the addition done? In random pairs of integers we add 1 to the first digit of the first
# one. Or we take 1 from the first digit of the second one. Or both: then the sum is what it was.
# What only keeps the integers is as far from where it was as before, or farther; what has added
# them forgets.

# %%
first, second = rng.integers(0, 10, (2, 400, n))
both_fit = (first[:, 0] < 9) & (second[:, 0] > 0)
first, second = first[both_fit], second[both_fit]
one = np.eye(n, dtype=int)[0]  # in the first digit


def run_sums(first, second):
    return run(model, addition_rows(first, second).inputs)


recording = recordings["addition"] = run_sums(first, second)
changes = {
    "first integer + 1 in its first digit": run_sums(first + one, second),
    "second integer - 1 in its first digit": run_sums(first, second - one),
    "both: the sum is the same": run_sums(first + one, second - one),
}
differences = {name: difference(recording, other) for name, other in changes.items()}
draw_differences(differences)

# %% [markdown]
# As the paper says, the first integer is encoded into memory and kept while the second is read.
# Where the two meet, the picture tells too: near the input both changes are remembered to the end
# as if nothing had been added. At the output, when the sum is said, they have cancelled for the
# most part. The addition happens on the way, location by location, and not at one place.

# %%
alone, _, both = (diagonal_means(part)[0] for part in differences.values())
ratios = []
for location in range(delay + 1):
    said = slice(2 * n + 2 + location, 3 * n + 3 + location)  # when the sum passes here
    ratios.append(both[said, location].mean() / alone[said, location].mean())
    print(f"location {location + 1}: both make {ratios[-1]:.2f} of what the first alone makes")
assert alone[n + 2 : 2 * n + 2].max() > 0.5 * alone.max()  # while the second integer is read
assert ratios[0] > 1
assert ratios[-1] < 0.5
assert ratios == sorted(ratios, reverse=True)

# %% [markdown]
# ## Wikipedia
#
# > the input can be carried to the output location with less modification if it is sufficient to
# > determine the next character, and vice versa
#
# The text was written for this notebook, in the manner of Wikipedia's XML.

# %%
TEXT = """\
  <page>
    <title>Tide mill</title>
    <id>48213</id>
    <revision>
      <id>15911406</id>
      <timestamp>2006-02-25T18:04:11Z</timestamp>
      <contributor>
        <username>Miller</username>
        <id>2107</id>
      </contributor>
      <text xml:space="preserve">A '''tide mill''' is a [[water mill]] that is driven by the rise
and fall of the [[tide]]. A dam with a gate is built across a small [[river]] mouth, and the water
of the rising sea fills a pond behind it. When the tide is out, the water is let go through the
[[water wheel|wheel]], which turns the stones.

== History ==
Tide mills were known in the [[Middle Ages]] on the coasts of [[England]], [[France]] and
[[Ireland]]. In the 18th century there were about 80 of them in London alone.&lt;ref&gt;The number
is made up, as is the rest of the page.&lt;/ref&gt;

== See also ==
* [[Water power]]
* [[History of the mill]]

[[Category:Water mills]]</text>
    </revision>
  </page>
"""
VISIBLE = str.maketrans({" ": "␣", "\n": "↵"})
START, STOP = 530, 590  # what the picture shows


def part(recording, start, stop):
    """The steps that belong to the inputs from ``start`` up to ``stop``."""
    steps = slice(start, stop + recording.delay)
    outputs, hidden = recording.outputs[:, start:stop], recording.hidden[:, steps]
    cell, kernels = recording.cell[:, steps], recording.kernels[:, steps]
    return dataclasses.replace(
        recording, outputs=outputs, hidden=hidden, cell=cell, kernels=kernels
    )


model = load("wikipedia")
symbols = model.metadata.symbols
numbers = np.array([[symbols.index(byte) for byte in TEXT.encode()]], dtype=np.int32)
recording = recordings["wikipedia"] = run(model, numbers)
chances = probabilities(model, recording)[0]  # [T, S]
said = "".join(chr(symbols[number]) for number in chances.argmax(axis=-1))
rows = [text.translate(VISIBLE) for text in (TEXT, TEXT[1:] + "\n", said)]
draw_diagonal(part(recording, START, STOP), 0, *(list(row[START:STOP]) for row in rows))

# %% [markdown]
# The colours at the output's location are much like those at the input's, one step later (the
# letters below are what was read, asked and said; red is wrong). To check the paper's sentence, we
# compare the memory cell at the input's location when a character is read with that at the
# output's when it is answered: how alike are they (the cosine of the two), and how sure of the
# next character is the network (the chance of its first choice)?

# %%
certainty = chances.max(axis=-1)
entering, leaving = recording.cell[0, : len(TEXT), 0], recording.cell[0, recording.delay :, -1]
likeness = (entering * leaving).sum(axis=-1)
likeness /= np.linalg.norm(entering, axis=-1) * np.linalg.norm(leaving, axis=-1)
together = np.corrcoef(likeness, certainty)[0, 1]
print(f"cosine {likeness.mean():.2f} on average; correlation with certainty {together:+.2f}")
assert likeness.mean() > 0.7
assert together < -0.3

# %% [markdown]
# Much is carried over. But it is where the next character is *not* clear that memory is carried
# to the output with less change; where the network is sure, it has changed more. This is the
# reverse of how the paper reads its picture. (Ours has two locations, and a network as small as
# this predicts far worse than the paper's: its first choice is often wrong.)

# %% [markdown]
# ## MNIST and permuted MNIST
#
# > sequential MNIST: the network is more sensitive to the pixel value change (representing the
# > contour, or topology of the digit) and can gradually accumulate evidence for the final
# > prediction
#
# > sequential pMNIST: the network is sensitive to high value pixels (representing the foreground
# > digit)
#
# Ours read 28 pixels a step where the paper's read one: a row of the digit, or in permuted MNIST
# 28 pixels from anywhere. 40 digits of the test set come with this notebook.

# %%
digits = np.load("mnist_digits.npz")
labels = digits["labels"]
pixels = digits["images"].reshape(len(labels), -1).astype(np.float32) / 255


def read_digits(name):
    """A network, the digits as it reads them [B, T, R], and their recording."""
    model = load(name)
    permuted = model.metadata.task == "pmnist"
    order = PermutedMnist.permutation if permuted else np.arange(pixels.shape[1])
    inputs = pixels[:, order].reshape(len(labels), model.metadata.training.length, -1)
    return model, inputs, run(model, inputs)


networks = {name: read_digits(name) for name in ("mnist", "pmnist")}
recordings |= {name: recording for name, (_, _, recording) in networks.items()}


# %%
def draw_digit(name, example=0):
    _, inputs, recording = networks[name]
    figure = draw_diagonal(recording, example, inputs[example])
    title = f"{name}, a {labels[example]}: memory cell, mean over channels"
    figure.axes[0].set_title(title, fontsize="medium")
    return figure


draw_digit("mnist")

# %%
draw_digit("pmnist")

# %%
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for (name, (model, _, recording)), line in zip(networks.items(), ("-", "--"), strict=True):
    chances = probabilities(model, recording)
    right = chances[np.arange(len(labels)), :, labels].mean(axis=0)  # [T]
    axes.plot(range(1, len(right) + 1), 100 * right, line, label=name)
    assert right[0] < 0.15
    assert right[-1] > 0.8
    assert np.diff(right).min() > -0.01  # it only grows
axes.set(xlabel="inputs read", ylabel="chance given to the right digit (%)", ylim=(0, 100))
axes.grid(alpha=0.3)
_ = axes.legend()

# %% [markdown]
# (The read-out was trained at the last step only; here it is asked at each.) Evidence is
# accumulated as the paper says. Rows of a digit come in order: the first ones are blank, and it
# takes most of them to be sure. In permuted MNIST each step has a bit of everything, and a few
# steps tell much.
#
# What moves the memory? For each step and digit we take how far the memory cell near the input
# moves, how much the pixels changed since the step before, and how bright they are; each without
# its mean over the digits, as some steps are always moved much. A linear fit of the first by the
# two others:


# %%
def standardised(values):
    """Values [B, T] without their mean over the digits, of deviation 1."""
    centred = values - values.mean(axis=0)
    return (centred / centred.std()).ravel()


fits = {}
for name, (_, inputs, recording) in networks.items():
    cell = recording.cell[:, : inputs.shape[1], 0]
    moved = np.linalg.norm(np.diff(cell, axis=1, prepend=0), axis=-1)
    change = np.abs(np.diff(inputs, axis=1, prepend=0)).mean(axis=-1)
    factors = np.stack([standardised(change), standardised(inputs.mean(axis=-1))], axis=-1)
    fits[name] = np.linalg.lstsq(factors, standardised(moved), rcond=None)[0]
    print(f"{name}: change {fits[name][0]:.2f}, brightness {fits[name][1]:.2f}")
assert fits["mnist"][0] > fits["mnist"][1]
assert fits["pmnist"][1] > fits["pmnist"][0]

# %% [markdown]
# So it is as the paper says: digits in scan-line order move the memory by change, by contours;
# permuted ones by brightness, by how much of the foreground came in.
#
# ## What all have in common
#
# > (i) at each timestep, the values at different tensor locations are markedly different; (ii)
# > from the input to the output, the values become increasingly distinct and are shifted by time
#
# Two measures of the channel means along the diagonal. How alike are neighbours: the correlation
# of each location with the next one, the latter so many steps later, over examples and steps.
# (What all examples have in common is taken off first.) And how much do the values vary over the
# steps: the standard deviation at the output's location as a multiple of that at the input's.


# %%
def neighbours(recording, lag):
    """Correlation of each diagonal location with the next one ``lag`` steps later, their mean."""
    means = diagonal_means(recording)
    # A single text has no other examples: its mean over the steps is taken off.
    means = means - means.mean(axis=0 if len(means) > 1 else 1, keepdims=True)
    steps, places = means.shape[1:]
    return np.mean(
        [
            np.corrcoef(means[:, : steps - lag, p].ravel(), means[:, lag:, p + 1].ravel())[0, 1]
            for p in range(places - 1)
        ]
    )


def growth(recording):
    """Deviation over the steps at the output's location over that at the input's."""
    deviation = diagonal_means(recording).std(axis=1).mean(axis=0)
    return deviation[-1] / deviation[0]


LAGS = range(5)
alike = {
    name: [neighbours(recording, lag) for lag in LAGS] for name, recording in recordings.items()
}
grown = {name: growth(recording) for name, recording in recordings.items()}
print("steps later      " + "".join(f"{lag:7}" for lag in LAGS) + "    deviation")
for name in recordings:
    print(f"{name:17}" + "".join(f"{value:7.2f}" for value in alike[name]) + f"{grown[name]:13.2f}")

# %% [markdown]
# - Where symbols come one by one (memorization, addition, Wikipedia) neighbours differ at one and
#   the same step, and are most alike one step apart: values are shifted by time, one location a
#   step, as the paper says. On two axes the diagonal's neighbours are most alike three steps
#   apart, since memory moves on more slowly there.
# - In both MNIST networks neighbours are nearly the same at all times, so that this does not hold
#   for ours: their memory changes slowly, as evidence comes in, at all locations together.
# - Values do not become more distinct from input to output in ours: they vary about as much at
#   both ends, or less at the output.

# %%
for name in ("memorization", "addition", "wikipedia"):
    assert np.argmax(alike[name]) == 1
    assert alike[name][0] < 0.7
assert np.argmax(alike["memorization-20"]) == 3
assert min(alike["mnist"] + alike["pmnist"]) > 0.85
assert max(grown.values()) < 1.2

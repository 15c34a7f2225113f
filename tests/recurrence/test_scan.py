"""scan: the values and gradients of a plain loop, for a cost that grows with T alone."""

from collections import namedtuple
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from comparison import (
    as_float64,
    assert_close,
    central_differences,
    values_and_gradients,
    weights_in_sum,
)
from layer_helpers import GRU, cost, plain_loop
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm import scan

B, R, M = 2, 3, 5
Memory = namedtuple("Memory", "fast slow")


def gru_problem(length, dtype=mx.float32):
    mx.random.seed(length)
    cell = GRU(R, M)
    cell.set_dtype(dtype)
    state, xs = mx.random.normal((B, M)).astype(dtype), mx.random.normal((length, B, R))
    return cell, state, xs.astype(dtype)


def computed(run, cell, state, xs):
    """Final state and outputs, and the gradients of the cell, the first state and the inputs."""
    return values_and_gradients(cell, partial(run, lambda h, x: cell(x, h)[::-1]), state, xs)


@pytest.mark.parametrize("checkpoint", [None, 1, 3, 8])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_equals_the_plain_loop(length, checkpoint):
    problem = gru_problem(length)
    expected = computed(plain_loop, *problem)
    run = partial(scan, checkpoint=checkpoint)
    assert_close(computed(run, *problem), expected, 1e-5)
    compiled = mx.compile(partial(computed, run, problem[0]))
    assert_close(compiled(*problem[1:]), expected, 1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("checkpoint", [None, 3])
def test_half_precision(dtype, checkpoint):
    problem = gru_problem(6, dtype)
    expected = computed(plain_loop, *problem)
    assert_close(computed(partial(scan, checkpoint=checkpoint), *problem), expected, 0.03)


def numpy_scan(weights, h, xs):
    ys = []
    for x in xs:
        a = x @ weights["from_input.weight"].T + weights["from_input.bias"]
        b = h @ weights["from_past.weight"].T + weights["from_past.bias"]
        z, r = (1 / (1 + np.exp(-(a + b)[:, k * M : (k + 1) * M])) for k in (0, 1))
        h = (1 - z) * np.tanh(a[:, 2 * M :] + r * b[:, 2 * M :]) + z * h
        ys.append(h)
    return h, np.stack(ys)


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_against_central_differences_in_float64(checkpoint):
    cell, state, xs = gru_problem(5)
    values, (d_cell, d_state, d_xs) = computed(
        partial(scan, checkpoint=checkpoint), cell, state, xs
    )
    arrays = dict(tree_flatten(cell.parameters())) | {"state": state, "xs": xs}
    arrays = {name: as_float64(array) for name, array in arrays.items()}

    def run(arrays):
        return numpy_scan(arrays, arrays["state"], arrays["xs"])

    def loss(arrays):
        values = enumerate(run(arrays))
        return sum((as_float64(weights_in_sum(n, a.shape)) * a).sum() for n, a in values)

    assert_close(values, run(arrays), 1e-6)
    gradients = dict(tree_flatten(d_cell)) | {"state": d_state, "xs": d_xs}
    assert_close(gradients, central_differences(loss, arrays), 1e-5)


@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize("time_axis", [0, 1])
def test_trees(time_axis, checkpoint):
    T = 5
    a, b = mx.random.normal((T, B, R)), mx.random.normal((T, B))
    xs = {"a": a, "rest": (None, [b])}
    state = (Memory(mx.zeros((B, R)), None), {"count": mx.array(0)})

    def step(state, x):
        (fast, slow), count = state[0], state[1]["count"]
        if (slow, x["rest"][0]) != (None, None):  # not by assert, whose globals scan would search
            raise TypeError
        fast = 0.5 * fast + x["a"] * x["rest"][1][0][:, None]
        y = Memory(fast, [fast.sum(axis=1), count * mx.ones((B,))])
        return (Memory(fast, None), {"count": count + 1}), y

    moved = {"a": mx.moveaxis(a, 0, time_axis), "rest": (None, [mx.moveaxis(b, 0, time_axis)])}
    after, ys = scan(step, state, moved, time_axis=time_axis, checkpoint=checkpoint)
    outputs = []
    for t in range(T):
        state, y = step(state, {"a": a[t], "rest": (None, [b[t]])})
        outputs.append(y)
    assert isinstance(after[0], Memory)
    assert after[1]["count"].item() == T
    assert mx.allclose(after[0].fast, state[0].fast)
    assert isinstance(ys, Memory)
    assert mx.allclose(ys.fast, mx.stack([y.fast for y in outputs], axis=time_axis))
    for k in (0, 1):
        expected = mx.stack([y.slow[k] for y in outputs], axis=time_axis)
        assert mx.allclose(ys.slow[k], expected)
    assert xs.keys() == moved.keys()


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_no_inputs_no_outputs_no_state(checkpoint):
    run = partial(scan, checkpoint=checkpoint)
    w = mx.array([1.5])

    def powers(w):
        state, ys = run(lambda s, x: (s * w, s), mx.ones((1,)), None, length=3)
        return (state + ys.sum(axis=0)).sum()

    assert powers(w).item() == pytest.approx(1.5**3 + 1 + 1.5 + 1.5**2)
    assert mx.grad(powers)(w).item() == pytest.approx(3 * 1.5**2 + 1 + 2 * 1.5)
    state, ys = run(lambda s, x: (s + x, None), mx.zeros((2,)), mx.ones((4, 2)))
    assert (state.tolist(), ys) == ([4, 4], None)
    state, ys = run(lambda s, x: (None, x * w), None, mx.ones((4, 1)))
    assert state is None
    assert ys.shape == (4, 1)
    assert mx.grad(lambda w: run(lambda s, x: (s, x * w), (), mx.ones((4, 1)))[1].sum())(w) == 4
    assert mx.grad(lambda w: run(lambda s, x: (s, w), None, None, length=3)[1].sum())(w) == 3
    empty = namedtuple("Empty", ())()
    assert run(lambda s, x: (s, [{}]), (empty, []), None, length=3) == ((empty, []), [{}])


def test_later_inputs_change_no_earlier_output_and_chunks_go_on():
    cell, state, xs = gru_problem(9)

    def step(h, x):
        return cell(x, h)[::-1]

    final, ys = scan(step, state, xs)
    changed = mx.concatenate([xs[:4], xs[4:] + 1])
    assert mx.array_equal(scan(step, state, changed)[1][:4], ys[:4])
    middle, first = scan(step, state, xs[:4])
    last, second = scan(step, middle, xs[4:])
    assert mx.allclose(mx.concatenate([first, second]), ys, atol=1e-6)
    assert mx.allclose(last, final, atol=1e-6)


def test_value_and_grad_of_a_module_and_second_derivatives():
    cell, state, xs = gru_problem(6)

    def total(run, cell, state):
        return run(lambda h, x: cell(x, h)[::-1], state, xs)[1].sum()

    def derivatives(run):
        gradient = mx.grad(partial(total, run, cell))
        second = mx.grad(lambda state: (gradient(state) ** 2).sum())(state)
        return nn.value_and_grad(cell, partial(total, run))(cell, state), second

    for run in (scan, partial(scan, checkpoint=2)):
        assert_close(derivatives(run), derivatives(plain_loop), 1e-5)


@pytest.mark.parametrize("checkpoint", [None, 1, 2])
def test_a_step_may_write_into_its_state(checkpoint):
    """Into arrays and containers: each step has its own, and so has the caller."""
    cell, first, xs = gru_problem(5)

    def functional(state, x):
        h, (buffer,), counts = state["h"], state["buffer"], state["counts"]
        h = cell(x, h + buffer[:, 0])[0]
        buffer = mx.concatenate([h[:, None], buffer[:, :-1]], axis=1)
        return {"h": h * 2, "buffer": [buffer], "counts": counts + 1}, (buffer, h * 2, counts + 1)

    def writing(state, x):
        h, (buffer,) = state["h"], state["buffer"]
        h[:] = cell(x, h + buffer[:, 0])[0]
        buffer[:, 1:] = mx.array(buffer[:, :-1])
        buffer[:, 0] = h
        h *= 2
        state["counts"] += 1
        return state, (buffer, h, state["counts"])

    def state_of(h, buffer):
        return {"h": h, "buffer": [buffer], "counts": mx.array(0)}

    def loss(run, h, buffer, xs):
        state, ys = run(state_of(h, buffer), xs)
        return sum(mx.sin(a).sum() for _, a in tree_flatten([state, ys]))

    state = state_of(first, mx.random.normal((B, 3, M)))
    kept = [mx.array(array) for _, array in tree_flatten(state)]
    runs = [partial(plain_loop, functional), partial(scan, writing, checkpoint=checkpoint)]
    expected, found = (tree_flatten(run(state, xs)) for run in runs)
    assert_close(dict(found), dict(expected), 1e-5)
    assert all(map(mx.array_equal, kept, (array for _, array in tree_flatten(state))))
    gradients = [
        mx.grad(partial(loss, run), argnums=(0, 1, 2))(first, state["buffer"][0], xs)
        for run in runs
    ]
    assert_close(gradients[1], gradients[0], 1e-5)


@pytest.mark.parametrize("checkpoint", [None, 1, 3])
def test_what_a_step_hands_on_stays_what_it_was(checkpoint):
    """An array from which an index is made has no gradient, but may be handed on."""
    cell, first, xs = gru_problem(5)
    position, table = mx.array([1.0]), mx.random.normal((3, M))

    def step(state, x):
        h, position = state
        h = cell(x, h)[0] + table[position.astype(mx.int32)]
        return (h, position), h

    def loss(run, h):
        (h, last), ys = run(step, (h, position), xs)
        return h.sum() + mx.sin(ys).sum() + last.sum()

    found, expected = (
        mx.grad(partial(loss, run))(first)
        for run in (partial(scan, checkpoint=checkpoint), plain_loop)
    )
    assert_close({"h": found}, {"h": expected}, 1e-5)


def gradient_cost(length):
    """Seconds and bytes of a gradient on wide inputs."""
    w = mx.random.normal((8, 8)) / 4
    xs, state = mx.random.normal((length, 8, 512)), mx.zeros((8, 8))

    def total(w, xs):
        def step(state, x):
            state = mx.tanh(state @ w + x[:, :8])
            return state, state

        return scan(step, state, xs)[1].sum()

    mx.eval(w, xs, state)
    mx.clear_cache()
    return cost(lambda: mx.eval(mx.grad(total, argnums=(0, 1))(w, xs)))


def test_cost_is_linear_in_the_number_of_steps():
    short, long = [], []
    for _ in range(5):  # other processes only add to what the work needs
        short.append(gradient_cost(100))
        long.append(gradient_cost(800))
        least = [map(min, zip(*costs, strict=True)) for costs in (short, long)]
        seconds, peak = (after / before for before, after in zip(*least, strict=True))
        if max(seconds / 2, peak / 1.5) < 8:
            break
    # A plain loop takes 40 times as long.
    assert seconds < 8 * 2
    # Quadratic memory were 64 times as much; what other work delays takes some more than 8 times.
    assert peak < 8 * 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 3}, r"\[scan\] 'step' must be a function \(state, x\) -> \(state, y\) but got 3"),
        ({"state": 0.0}, r"'state' must be an mx.array, None, or a tuple, list or dict of them"),
        ({"state": {"h": [1]}}, r"'state\.h\[0\]' must be an mx\.array"),
        ({"xs": np.zeros((3, 2))}, r"'xs' must be an mx\.array"),
        ({"xs": None}, r"'length' must be given where 'xs' has no arrays"),
        ({"xs": ()}, r"'length' must be given where 'xs' has no arrays"),
        ({"xs": mx.zeros((0, 2))}, r"'xs' must be of one time step or more"),
        ({"xs": mx.array(1.0)}, r"'xs' must be of more than 0 axes, for 'time_axis' 0"),
        ({"xs": mx.zeros((3,)), "time_axis": 1}, r"'xs' must be of more than 1 axes"),
        (
            {"xs": {"a": mx.zeros((3, 2)), "b": mx.zeros((4, 2))}},
            r"'xs\.b' must be of 3 time steps on axis 0, as 'xs\.a' is, but got 'shape \(4, 2\)'",
        ),
        ({"length": 4}, r"'length' must be 3, the time steps of 'xs', or None but got 4"),
        ({"length": 0}, r"'length' must be an integer of 1 or more but got 0"),
        ({"xs": None, "length": True}, r"'length' must be an integer of 1 or more"),
        ({"time_axis": -1}, r"'time_axis' must be an integer of 0 or more"),
        ({"checkpoint": 0}, r"'checkpoint' must be an integer of 1 or more"),
        ({"checkpoint": 2.5}, r"'checkpoint' must be an integer of 1 or more"),
    ],
)
def test_wrong_arguments_are_named_before_any_step(change, message):
    def step(state, x):
        raise AssertionError("called")

    arguments = {"step": step, "state": mx.zeros((2,)), "xs": mx.zeros((3, 2))} | change
    with pytest.raises(ValueError, match=message):
        scan(arguments.pop("step"), arguments.pop("state"), arguments.pop("xs"), **arguments)


@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize(
    ("state", "step", "message"),
    [
        (
            {"h": mx.zeros((2,))},
            lambda s, x: ({"h": s["h"][None]}, x),
            r"'state\.h' must be of shape \(2,\) and type mlx\.core\.float32 after each step, as "
            r"before it, but got .* shape \(1, 2\)",
        ),
        (
            mx.zeros((2,)),
            lambda s, x: (s.astype(mx.float16), x),
            r"'state' must be .*float32 after each step.* type mlx\.core\.float16",
        ),
        ((mx.zeros(2), None), lambda s, x: ((s[0], s[0]), x), r"'state\[1\]' must be None after"),
        ((mx.zeros(2),), lambda s, x: (list(s), x), r"'state' must be a tuple after each step"),
        ((mx.zeros(2),), lambda s, x: (s * 2, x), r"'state' must be a tuple of length 1 after"),
        ({"a": mx.zeros(2)}, lambda s, x: ({"b": x}, x), r"a dict with the keys \['a'\] after"),
        (mx.zeros(2), lambda s, x: (0.0, x), r"'state' must be of shape \(2,\)"),
        (mx.zeros(2), lambda s, x: s, r"'step' must be a function that returns \(state, y\)"),
        (mx.zeros(2), lambda s, x: (s, {"loss": 0.5}), r"'y\.loss' must be an mx\.array"),
    ],
)
def test_a_step_that_changes_the_form_of_the_state(state, step, message, checkpoint):
    with pytest.raises(ValueError, match=message):
        scan(step, state, mx.zeros((3, 2)), checkpoint=checkpoint)


@pytest.mark.parametrize("checkpoint", [None, 3])
def test_outputs_of_several_forms(checkpoint):
    def step(state, x):
        calls.append(1)
        return state, x if len(calls) < 4 else (x, x)

    calls = []
    with pytest.raises(ValueError, match=r"'y' must be of shape \(2,\).* in each step, as in the"):
        scan(step, mx.zeros(()), mx.zeros((5, 2)), checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"'y' must be of 1 or more axes, for 'time_axis' 1, but"):
        scan(lambda s, x: (s, x.sum()), mx.zeros(()), mx.zeros((2, 5)), time_axis=1)

"""scan: the values and gradients of a plain loop, for a cost that grows with T alone."""

import time
from collections import namedtuple
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from layer_helpers import GRU
from mlx import nn
from mlx.utils import tree_flatten

from mlx_tlstm import scan

B, R, M = 2, 3, 5
Memory = namedtuple("Memory", "fast slow")


def naive(step, state, xs):
    ys = []
    for t in range(xs.shape[0]):
        state, y = step(state, xs[t])
        ys.append(y)
    return state, mx.stack(ys)


def gru_problem(length, dtype=mx.float32):
    mx.random.seed(length)
    cell = GRU(R, M)
    cell.set_dtype(dtype)
    state, xs = mx.random.normal((B, M)).astype(dtype), mx.random.normal((length, B, R))
    return cell, state, xs.astype(dtype)


def loss(run, cell, parameters, state, xs):
    cell.update(parameters)
    final, ys = run(lambda h, x: cell(x, h)[::-1], state, xs)
    return (ys.astype(mx.float32) ** 2).sum() + mx.sin(final.astype(mx.float32)).sum()


def loss_and_gradients(run, cell, state, xs):
    parameters = cell.parameters()
    function = mx.value_and_grad(partial(loss, run, cell), argnums=(0, 1, 2))
    return [array for _, array in tree_flatten(function(parameters, state, xs))]


@pytest.mark.parametrize("checkpoint", [None, 1, 3, 8])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_equals_the_plain_loop(length, checkpoint):
    problem = gru_problem(length)
    expected = loss_and_gradients(naive, *problem)
    run = partial(scan, checkpoint=checkpoint)
    for found in (
        loss_and_gradients(run, *problem),
        mx.compile(partial(loss_and_gradients, run, problem[0]))(*problem[1:]),
    ):
        for a, b in zip(found, expected, strict=True):
            assert mx.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("checkpoint", [None, 3])
def test_half_precision(dtype, checkpoint):
    problem = gru_problem(6, dtype)
    expected = loss_and_gradients(naive, *problem)
    found = loss_and_gradients(partial(scan, checkpoint=checkpoint), *problem)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert mx.allclose(a, b, rtol=0.03, atol=0.03)


def numpy_loss(weights, h, xs):
    total = 0.0
    for x in xs:
        a = x @ weights["from_input.weight"].T + weights["from_input.bias"]
        b = h @ weights["from_past.weight"].T + weights["from_past.bias"]
        z, r = (1 / (1 + np.exp(-(a + b)[:, k * M : (k + 1) * M])) for k in (0, 1))
        h = (1 - z) * np.tanh(a[:, 2 * M :] + r * b[:, 2 * M :]) + z * h
        total += (h**2).sum()
    return total + np.sin(h).sum()


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_against_central_differences_in_float64(checkpoint):
    cell, state, xs = gru_problem(5)
    function = mx.value_and_grad(
        partial(loss, partial(scan, checkpoint=checkpoint), cell), argnums=(0, 1, 2)
    )
    value, (d_cell, d_state, d_xs) = function(cell.parameters(), state, xs)
    weights = {name: np.array(a, np.float64) for name, a in tree_flatten(cell.parameters())}
    arrays = {**weights, "state": np.array(state, np.float64), "xs": np.array(xs, np.float64)}
    gradients = {**dict(tree_flatten(d_cell)), "state": d_state, "xs": d_xs}
    assert value.item() == pytest.approx(numpy_loss(weights, arrays["state"], arrays["xs"]))
    for name, array in arrays.items():
        differences = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            own = array[place]
            for sign in (1, -1):
                array[place] = own + sign * 1e-6
                in_cell = {name: arrays[name] for name in weights}
                differences[place] += sign * numpy_loss(in_cell, arrays["state"], arrays["xs"])
            array[place] = own
        np.testing.assert_allclose(np.array(gradients[name]), differences / 2e-6, atol=2e-5)


@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize("time_axis", [0, 1])
def test_trees(time_axis, checkpoint):
    T = 5
    a, b = mx.random.normal((T, B, R)), mx.random.normal((T, B))
    xs = {"a": a, "rest": (None, [b])}
    state = (Memory(mx.zeros((B, R)), None), {"count": mx.array(0)})

    def step(state, x):
        (fast, slow), count = state[0], state[1]["count"]
        assert slow is None
        assert x["rest"][0] is None
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

    for run in (scan, partial(scan, checkpoint=2)):
        found, expected = (
            nn.value_and_grad(cell, partial(total, r))(cell, state) for r in (run, naive)
        )
        for (_, a), (_, b) in zip(tree_flatten(found), tree_flatten(expected), strict=True):
            assert mx.allclose(a, b, rtol=1e-5, atol=1e-6)
        found, expected = (
            mx.grad(lambda s, r=r: (mx.grad(partial(total, r, cell))(s) ** 2).sum())(state)
            for r in (run, naive)
        )
        assert mx.allclose(found, expected, rtol=1e-4, atol=1e-6)


def gradient_cost(length):
    """Peak memory, and seconds of this process, of a gradient on wide inputs."""
    w = mx.random.normal((8, 8)) / 4
    xs, state = mx.random.normal((length, 8, 512)), mx.zeros((8, 8))

    def total(w, xs):
        def step(state, x):
            state = mx.tanh(state @ w + x[:, :8])
            return state, state

        return scan(step, state, xs)[1].sum()

    mx.eval(w, xs, state)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = time.process_time()
    mx.eval(mx.grad(total, argnums=(0, 1))(w, xs))
    return mx.get_peak_memory(), time.process_time() - before


def test_cost_is_linear_in_the_number_of_steps():
    short, long = (
        [min(values) for values in zip(*(gradient_cost(length) for _ in range(2)), strict=True)]
        for length in (100, 800)
    )
    assert long[0] < 8 * 1.1 * short[0]
    # A plain loop takes 40 times as long.
    assert long[1] < 8 * 2 * short[1]


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

"""The gradient of scan with ``checkpoint``: right for whatever a step reads, or refused."""

import dataclasses
import functools
import gc
import sys
import types
import weakref
from functools import partial
from types import SimpleNamespace

import mlx.core as mx
import pytest
from comparison import assert_close, relative_error, values_and_gradients
from layer_helpers import peak_bytes, plain_loop
from mlx import nn

from mlx_tlstm.recurrence.captured import Search
from mlx_tlstm.recurrence.scan import scan

T, BATCH, WIDTH = 7, 2, 3
TOLERANCE = 1e-5
GLOBAL = mx.zeros((WIDTH, WIDTH))
GLOBAL_MODULE = SimpleNamespace(inner=[mx.zeros((WIDTH, WIDTH))])
other_module = types.ModuleType("other_module")
other_module.inside = types.ModuleType("inside")


def recurrence(state, x, w):
    state = mx.tanh(x + state @ w)
    return state, state * w[0]


class Plain:
    def __init__(self, w):
        self.w = w

    def step(self, state, x):
        return recurrence(state, x, self.w)

    __call__ = step

    @property
    def weight(self):
        return self.w

    def by_property(self, state, x):
        return recurrence(state, x, self.weight)


class Slots(Plain):
    __slots__ = ("w",)


class OfClass:
    weights = None

    @staticmethod
    def step(state, x):
        return recurrence(state, x, OfClass.weights["w"])

    def helped(self, state, x):
        return self._help(state, x)

    def _help(self, state, x):
        return recurrence(state, x, self.weights["w"])


class Module(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.layers = [{"inner": Leaf(w)}, nn.Linear(2, 2)]

    def __call__(self, state, x):
        return recurrence(state, x, self.layers[0]["inner"].w)


class Leaf(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = w


@dataclasses.dataclass(frozen=True)
class Frozen:
    w: mx.array

    def step(self, state, x):
        return recurrence(state, x, self.w)


def of_global(w):
    global GLOBAL
    GLOBAL = w
    return lambda state, x: recurrence(state, x, GLOBAL)


def _through_globals(state, x):
    return recurrence(state, x, GLOBAL_MODULE.inner[0])


def of_helper(w):
    GLOBAL_MODULE.inner[0] = w
    return lambda state, x: _through_globals(state, x)


def of_python_module(w):
    other_module.inside.w = w
    return lambda state, x: recurrence(state, x, other_module.inside.w)


def of_class(w):
    OfClass.weights = {"w": w}
    return OfClass.step


def of_helping_class(w):
    OfClass.weights = {"w": w}
    return OfClass().helped


def of_attribute(w):
    def step(state, x):
        return recurrence(state, x, step.w)

    step.w = w
    return step


def of_default(w):
    return lambda state, x, weight=w: recurrence(state, x, weight)


def of_keyword(w):
    def step(state, x, *, weights=(None, w)):
        return recurrence(state, x, weights[1])

    return step


def of_cache(w):
    @functools.lru_cache(None)
    def weight():
        return w

    weight()
    return lambda state, x: recurrence(state, x, weight())


def of_shared(w):
    leaf = Leaf(w)
    both = (leaf, {"again": leaf})

    def step(state, x):
        state, _ = recurrence(state, x, both[0].w)
        return recurrence(state, x, both[1]["again"].w)

    return step


def of_computed(w):
    double, half = w * 2, {"half": [mx.sin(w) / 2]}
    return lambda state, x: recurrence(state, x, double @ half["half"][0])


def of_inner_scan(w):
    def inner(state, x):
        return recurrence(state, x, w)

    def step(state, x):
        state, y = scan(inner, state, mx.stack([x, x + 1, x]), checkpoint=2)
        return state, y[-1]

    return step


STEPS = {
    "closure": lambda w: lambda state, x: recurrence(state, x, w),
    "container": lambda w: lambda state, x, c=({"a": [w]},): recurrence(state, x, c[0]["a"][0]),
    "partial": lambda w: partial(recurrence, w=w),
    "partial of a partial": lambda w: partial(partial(lambda w, s, x: recurrence(s, x, w), w)),
    "method": lambda w: Plain(w).step,
    "property": lambda w: Plain(w).by_property,
    "callable": Plain,
    "slots": Slots,
    "dataclass": lambda w: Frozen(w).step,
    "module": Module,
    "module's method": lambda w: Module(w).__call__,
    "global": of_global,
    "helper": of_helper,
    "python module": of_python_module,
    "class": of_class,
    "helping class": of_helping_class,
    "attribute": of_attribute,
    "default": of_default,
    "keyword": of_keyword,
    "cache": of_cache,
    "shared": of_shared,
    "computed": of_computed,
    "inner scan": of_inner_scan,
}


def problem():
    mx.random.seed(0)
    w = mx.random.normal((WIDTH, WIDTH))
    return w, mx.random.normal((BATCH, WIDTH)), mx.random.normal((T, BATCH, WIDTH))


def gradients(run, make_step, *arguments):
    def made(w, state, xs):
        return run(make_step(w), state, xs)

    return values_and_gradients(nn.Module(), made, *arguments)


@pytest.mark.parametrize("name", STEPS)
def test_gradients_of_what_a_step_reads(name):
    expected = gradients(plain_loop, STEPS[name], *problem())
    for checkpoint in (1, 3, T + 1):
        found = gradients(partial(scan, checkpoint=checkpoint), STEPS[name], *problem())
        assert_close(found, expected, TOLERANCE)
    compiled = mx.compile(partial(gradients, partial(scan, checkpoint=3), STEPS[name]))
    assert_close(compiled(*problem()), expected, TOLERANCE)


@pytest.mark.parametrize("name", ["closure", "module", "computed", "inner scan"])
@pytest.mark.parametrize("evaluated", ["state", "outputs", "loss"])
def test_a_loss_that_evaluates(name, evaluated):
    """As one that prints: MLX drops what led to an array if a gradient in between untraced it."""

    def found(run, evaluate):
        def loss(w, state, xs):
            last, ys = run(STEPS[name](w), state, xs)
            value = (last * mx.arange(WIDTH)).sum() + (ys * ys).sum()
            if evaluate:
                mx.eval({"state": last, "outputs": ys, "loss": value}[evaluated])
            return value

        return mx.grad(loss, argnums=(0, 1, 2))(*problem())

    expected = found(plain_loop, False)
    for checkpoint in (1, 3, T + 1):
        assert_close(found(partial(scan, checkpoint=checkpoint), True), expected, TOLERANCE)


def of_name(w):
    globals()["GLOBAL"] = w
    return lambda state, x: recurrence(state, x, globals()["GLOBAL"])


def of_modules(w):
    globals()["GLOBAL"] = w
    return lambda state, x: recurrence(state, x, getattr(sys.modules[__name__], "GLO" + "BAL"))


def of_weak_reference(w):
    leaf = Leaf(w)
    ALIVE.append(leaf)
    reference = weakref.ref(leaf)
    return lambda state, x: recurrence(state, x, reference().w)


def of_another_function_of_one_name(w):
    w = w * 2
    globals()["GLOBAL"] = w
    return lambda state, x: recurrence(state, x, eval("GLOBAL"))


ALIVE = []
HIDDEN = [of_name, of_modules, of_weak_reference, of_another_function_of_one_name]


@pytest.mark.parametrize("hide", HIDDEN)
def test_what_cannot_be_found_is_refused(hide):
    run = partial(scan, checkpoint=3)
    message = r"\[scan\] 'step' must read arrays from where they can be found"
    with pytest.raises(ValueError, match=message):
        gradients(run, hide, *problem())
    w, state, xs = problem()

    def total(w):
        return mx.vmap(lambda state: run(hide(w), state, xs)[1])(state[None]).sum()

    with pytest.raises(ValueError, match=message):
        mx.grad(total)(w)
    with pytest.raises(ValueError, match=message):
        mx.jvp(lambda w: run(hide(w), state, xs)[1], [w], [w])
    # Nothing is lost where no gradient leads there.
    expected = mx.grad(lambda s: plain_loop(hide(w), s, xs)[1].sum())(state)
    found = mx.grad(lambda s: run(hide(w), s, xs)[1].sum())(state)
    assert_close(found, expected, TOLERANCE)


def test_a_hidden_array_beside_a_found_one_is_refused():
    w, state, xs = problem()

    def loss(w):
        globals()["GLOBAL"] = w * 3
        name = "GLOBAL"
        return scan(lambda s, x: recurrence(s, x, w + globals()[name]), state, xs, checkpoint=2)[
            1
        ].sum()

    with pytest.raises(ValueError, match="can be found"):
        mx.grad(loss)(w)


def test_weights_put_back_before_the_gradient():
    w, state, xs = problem()
    leaf = Leaf(mx.ones_like(w))

    def loss(run, w):
        own = leaf.w
        leaf.w = w * 2
        ys = run(lambda s, x: recurrence(s, x, leaf.w), state, xs)[1]
        leaf.w = own
        return (ys**2).sum()

    expected = mx.grad(partial(loss, plain_loop))(w)
    assert_close(mx.grad(partial(loss, partial(scan, checkpoint=3)))(w), expected, TOLERANCE)
    assert mx.array_equal(leaf.w, mx.ones_like(w))


def test_a_step_that_stores_arrays_is_refused():
    class Caching(Plain):
        cache = None

        def step(self, state, x):
            if self.cache is None:
                self.cache = self.w.T
            return recurrence(state, x, self.cache)

    with pytest.raises(ValueError, match="must leave the arrays"):
        gradients(partial(scan, checkpoint=3), lambda w: Caching(w).step, *problem())


def test_only_frozen_weights_have_no_gradient():
    w, state, xs = problem()
    model = Module(w)
    model.layers[0]["outer"] = Leaf(w * 0.5)

    def loss(model, run):
        def step(state, x):
            return model(state, x @ model.layers[0]["outer"].w)

        return run(step, state, xs)[1].sum()

    model.layers[0]["inner"].freeze()
    expected, found = (
        nn.value_and_grad(model, partial(loss, run=run))(model)
        for run in (plain_loop, partial(scan, checkpoint=3))
    )
    assert_close(found, expected, TOLERANCE)
    assert "w" not in found[1]["layers"][0].get("inner", {})


def test_arrays_are_as_before_after_an_error():
    w, state, xs = problem()
    calls = []

    def step(state, x):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("stopped")
        return recurrence(state, x, w)

    before = mx.array(w)
    with pytest.raises(RuntimeError, match="stopped"):
        scan(step, state, xs, checkpoint=2)
    assert mx.array_equal(w, before)


def test_random_numbers_are_repeated():
    w, state, xs = problem()
    dropout = nn.Dropout(0.5)

    def step(state, x):
        state, y = recurrence(state, x, dropout(w))
        return state, dropout(y)

    def loss(w_, run):
        mx.random.seed(3)
        found = run(step, state, xs)[1].sum()
        after.append(mx.random.uniform())
        return found

    after = []
    found, expected = (
        mx.value_and_grad(loss, argnums=0)(w, run)
        for run in (partial(scan, checkpoint=3), plain_loop)
    )
    assert_close(found[0], expected[0], TOLERANCE)
    assert after[0].item() == after[1].item()

    def gradient(run):
        mx.random.seed(3)
        result = mx.grad(lambda s: run(step, s, xs)[1].sum())(state), mx.random.uniform()
        mx.eval(result)
        return result

    assert_close(gradient(partial(scan, checkpoint=3)), gradient(plain_loop), TOLERANCE)


def test_random_numbers_are_repeated_where_a_training_step_is_compiled():
    _, state, xs = problem()

    def two_steps(run):
        mx.random.seed(1)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5))
        changing = [model.state, mx.random.state]

        def step(state, x):
            state = mx.tanh(model(state) + x)
            return state, state

        @partial(mx.compile, inputs=changing, outputs=changing)
        def gradient():
            return nn.value_and_grad(model, lambda: run(step, state, xs)[1].sum())()

        mx.random.seed(3)
        found = [gradient(), gradient(), mx.random.uniform()]
        mx.eval(found)
        return found

    found, expected = two_steps(partial(scan, checkpoint=3)), two_steps(plain_loop)
    assert_close(found, expected, TOLERANCE)
    assert relative_error(found[0][0], found[1][0]) > 0.01


def test_a_state_that_the_step_reads_too():
    w, state, xs = problem()
    model = Leaf(w)
    model.first = state

    def loss(model, run):
        def step(state, x):
            return recurrence(state, x + model.first, model.w)

        last, ys = run(step, model.first, xs)
        return last.sum() + (ys**2).sum()

    expected, found = (
        nn.value_and_grad(model, partial(loss, run=run))(model)
        for run in (plain_loop, partial(scan, checkpoint=3))
    )
    assert_close(found, expected, TOLERANCE)


def test_a_step_may_be_dropped_with_all_that_it_kept():
    w, state, xs = problem()

    def gradient():
        total = mx.grad(lambda w: scan(STEPS["module"](w), state, xs, checkpoint=2)[1].sum())
        mx.eval(total(w))

    gradient()
    gc.collect()
    before = mx.get_active_memory()
    for _ in range(3):
        gradient()
    gc.collect()
    assert mx.get_active_memory() <= before


def test_integers_pass_through():
    w, state, _ = problem()
    table = mx.random.normal((5, WIDTH))

    def step(state, x):
        hidden, count = state
        hidden, y = recurrence(hidden, table[x] + count, w)
        return (hidden, count + 1), (y, mx.argmax(y, axis=-1))

    symbols = mx.random.randint(0, 5, (T, BATCH))

    def loss(w, state, run):
        (hidden, count), ys = run(step, (state, mx.array(0)), symbols)
        return (hidden.sum() + (ys[0] ** 2).sum()), count, ys[1]

    expected, found = (
        mx.value_and_grad(partial(loss, run=run), argnums=1)(w, state)
        for run in (plain_loop, partial(scan, checkpoint=3))
    )
    assert_close(found, expected, TOLERANCE)
    assert found[0][1].item() == T


def test_second_derivatives_and_vmap():
    w, state, xs = problem()

    def sharpness(run, argument):
        def inner(w, state):
            return (run(lambda s, x: recurrence(s, x, w), state, xs)[1] ** 2).sum()

        def outer(w, state):
            first = mx.grad(inner, argnums=argument)(w, state)
            return (first**2).sum()

        return mx.grad(outer, argnums=(0, 1))(w, state)

    def batched(run):
        def inner(w, state):
            return run(lambda s, x: recurrence(s, x, w), state, xs)[1].sum()

        ws, states = mx.stack([w, 2 * w]), mx.stack([state, state + 1])
        total = mx.grad(lambda w, s: mx.vmap(inner)(w, s).sum(), argnums=(0, 1))(ws, states)
        shared = mx.grad(lambda w, s: mx.vmap(partial(inner, w))(s).sum(), argnums=(0, 1))
        each = mx.vmap(mx.grad(inner, argnums=(0, 1)))(ws, states)
        forward = mx.jvp(inner, [w, state], [w + 1, state])[1]
        return total, shared(w, states), each, forward

    checkpointed = partial(scan, checkpoint=3)
    for argument in (0, 1):
        assert_close(sharpness(checkpointed, argument), sharpness(plain_loop, argument), TOLERANCE)
    assert_close(batched(checkpointed), batched(plain_loop), TOLERANCE)
    assert_close(batched(scan), batched(plain_loop), TOLERANCE)


@pytest.mark.parametrize("compiled", [False, True])
def test_memory_is_saved(compiled):
    width, steps = 64, 144
    w, xs = mx.random.normal((width, width)) / 8, mx.random.normal((steps, 1, width))
    state = mx.zeros((64, width))

    def peak(checkpoint):
        def loss(w):
            def step(state, x):
                for _ in range(4):
                    state = mx.tanh(mx.sin(state @ w) + x)
                return state, state.sum()

            return scan(step, state, xs, checkpoint=checkpoint)[1].sum()

        gradient = mx.grad(loss)
        gradient = mx.compile(gradient) if compiled else gradient
        mx.eval(w, xs, state)
        return peak_bytes(lambda: mx.eval(gradient(w)))

    assert peak(12) < 0.12 * peak(None)


def test_the_same_objects_are_found_each_time():
    w, *_ = problem()
    step = STEPS["module"](w)
    first = Search(step).arrays
    assert any(array is w for array in first)
    assert all(a is b for a, b in zip(first, Search(step).arrays, strict=True))


def test_the_search_leaves_pytest_alone():
    """A step with an assert, which pytest rewrites, reaches all of pytest by the names in it."""
    decay = mx.array(0.5)

    def step(state, x):
        assert x.ndim == 0
        return decay * state + x, state

    search = Search(step)
    assert [a is decay for a in search.arrays] == [True]
    assert len(search._barren) < 500


@pytest.mark.parametrize("checkpoint", [1, 2, T + 1])
def test_inputs_that_are_used_as_an_index(checkpoint):
    """MLX has no gradient through an index; none is asked for by what is not differentiated."""
    w, state, _ = problem()
    xs = mx.eye(5)[mx.arange(T * BATCH).reshape(T, BATCH) % 5]
    table = mx.random.normal((5, WIDTH))

    def step(state, x, table):
        state = mx.tanh(state @ w + table[mx.argmax(x, -1)])
        return state, state

    def loss(run, table, first, xs):
        last, ys = run(partial(step, table=table), first, xs)
        return last.sum() + (ys**2).sum()

    scanned, arguments = partial(scan, checkpoint=checkpoint), (table, state, xs)
    expected = mx.grad(partial(loss, plain_loop), argnums=(0, 1))(*arguments)
    found = mx.grad(partial(loss, scanned), argnums=(0, 1))(*arguments)
    assert_close(found, expected, TOLERANCE)
    with pytest.raises(ValueError, match="Cannot calculate VJP with respect to indices"):
        mx.grad(partial(loss, scanned), argnums=2)(*arguments)


def test_a_found_array_that_is_used_as_an_index():
    _, state, xs = problem()
    choice, embedding = mx.eye(5)[2], nn.Embedding(5, WIDTH)

    def step(s, x):
        s = mx.tanh(s + x + embedding(mx.argmax(choice)))
        return s, s

    expected, found = (
        nn.value_and_grad(embedding, lambda run=run: run(step, state, xs)[1].sum())()
        for run in (plain_loop, partial(scan, checkpoint=2))
    )
    assert_close(found, expected, TOLERANCE)

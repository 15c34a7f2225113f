"""One model in several threads, and one piece of work that goes from thread to thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_tlstm import SequenceModel, StreamingSession, make_layer, training
from mlx_tlstm.models.generation import generate
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.training.runs import RunFolder

SYMBOLS = 5


def build(variant="2d-tlstm+cn", depth=3):
    mx.random.seed(3)
    return SequenceModel(make_layer(variant, SYMBOLS, 7, depth), SYMBOLS).eval()


def elsewhere(function):
    """What ``function`` gives in a thread of its own, which then ends."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.mark.parametrize("variant", ["2d-tlstm+cn", "slstm"])
def test_many_sessions_of_one_model(variant):
    model = build(variant)
    inputs = [
        [mx.random.normal((2, SYMBOLS), key=mx.random.key(100 * i + t)) for t in range(5)]
        for i in range(200)
    ]
    mx.eval(inputs)

    def outputs(rows):
        session = StreamingSession(model)
        given = [session.push(x) for x in rows] + session.flush()
        return [y.tolist() for y in given if y is not None]

    serial = [outputs(rows) for rows in inputs]
    whole = mx.stack(inputs[0], axis=1)
    expected = model(whole)[0].tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outputs, inputs)) == serial
    assert model(whole)[0].tolist() == expected


def test_a_function_traced_by_several_threads_at_once():
    """Each thread gets its own results, at two shapes, and the model keeps its arrays."""
    model = build()
    before = dict(tree_flatten(model.parameters()))
    mx.eval(before)
    compiled = CompiledFunction(model, lambda model, x: model(x)[0])
    inputs = [mx.random.normal((1, 3 + i % 2, SYMBOLS)) for i in range(16)]
    mx.eval(inputs)
    expected = [model(x)[0].tolist() for x in inputs]
    barrier = threading.Barrier(8)

    def run(worker):
        barrier.wait()
        return [compiled(x).tolist() for x in inputs[worker::8]]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, range(8)))
    for worker, results in enumerate(found):
        for result, plain in zip(results, expected[worker::8], strict=True):
            assert mx.allclose(mx.array(result), mx.array(plain), rtol=1e-5, atol=1e-6)
    after = dict(tree_flatten(model.parameters()))
    assert all(after[name] is array for name, array in before.items())


def test_a_generator_that_goes_from_thread_to_thread():
    arguments = ([0, 3, 1], 6, 0.7, 0.9, 4)
    model = build()
    expected = list(generate(build(), *arguments))
    fresh = generate(model, *arguments)  # of weights that nobody has evaluated
    assert [elsewhere(lambda: next(fresh)) for _ in expected] == expected
    assert list(elsewhere(lambda: generate(model, *arguments))) == expected


def test_a_session_that_goes_from_thread_to_thread():
    rows = [mx.random.normal((SYMBOLS,), key=mx.random.key(t)) for t in range(6)]
    mx.eval(rows)
    session = StreamingSession(build())
    given = [elsewhere(lambda x=x: session.push(x)) for x in rows]
    given += elsewhere(session.flush)
    found = mx.stack([y for y in given if y is not None])
    assert mx.allclose(found, build()(mx.stack(rows))[0], rtol=1e-6, atol=1e-6)


def test_weights_that_another_thread_left_unevaluated():
    model = elsewhere(build)
    message = r"'model' must be evaluated \(mx.eval\(model.parameters\(\)\)\) by the thread"
    for use in (StreamingSession, lambda model: generate(model, [0], 1)):
        with pytest.raises(ValueError, match=message):
            use(model)


def test_steps_of_training_in_changing_threads(settings):
    config = settings("wikipedia")
    trainers = [training.Trainer(config), elsewhere(lambda: training.Trainer(config))]
    reports = [
        [trainers[0].train_step() for _ in range(4)],
        [elsewhere(trainers[1].train_step) for _ in range(4)],
    ]
    assert reports[0] == reports[1]
    arrays = elsewhere(trainers[1].arrays)
    restored = elsewhere(lambda: training.Trainer(config))
    elsewhere(lambda: restored.restore(4, arrays))
    assert restored.train_step() == trainers[0].train_step()


def test_sampling_from_a_model_that_trains(settings, tmp_path):
    """Training ends as ever; what the other threads see are the weights of some step."""
    config = settings("wikipedia", samples=240, eval_every=40)
    expected = training.fit(config, tmp_path / "alone")
    trained, step_weights = threading.Event(), {}
    started = threading.Event()

    class Watch(training.Callback):
        def on_start(self, trainer):
            self.trainer = trainer
            self.on_step(trainer, None)
            started.set()

        def on_step(self, trainer, report):
            # A gradient of zero leaves a weight as it was: all of them name the step.
            step_weights[fingerprint(trainer.model)] = trainer.step

    def fingerprint(model):
        arrays = [array for _, array in tree_flatten(model.parameters())]
        return tuple(mx.sum(array).item() for array in arrays)

    watch = Watch()

    def use(work):
        count = 0
        started.wait()
        while not trained.is_set() or not count:
            work(watch.trainer.model)
            count += 1
        return count

    seen = []
    compiled = {}

    def look(model):
        function = compiled.setdefault("", CompiledFunction(model, _sums))
        seen.append(tuple(array.item() for array in function()))

    def stream(model):
        session = StreamingSession(model)
        mx.eval([session.push(mx.ones((1, model.layer.cell.input_size))) for _ in range(3)])

    def evaluated(model):
        assert training.evaluate(model, watch.trainer.task, "validation")["loss"] < 20

    jobs = [look, stream, evaluated, lambda model: list(generate(model, [0, 1], 3))]
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(use, job) for job in jobs]
        try:
            result = training.fit(config, tmp_path / "watched", [watch])
        finally:
            started.set()
            trained.set()
        assert all(future.result() > 0 for future in futures)
    assert [drop_times(r) for r in read(tmp_path / "watched")] == [
        drop_times(r) for r in read(tmp_path / "alone")
    ]
    assert result.test == expected.test
    best = fingerprint(result.model)
    assert set(seen) <= {*step_weights, best}


def _sums(model):
    return [mx.sum(array) for _, array in tree_flatten(model.parameters())]


def read(path):
    return RunFolder.open(path).read_metrics()


def drop_times(record):
    return {name: value for name, value in record.items() if name != "seconds"}

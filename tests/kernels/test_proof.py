"""Kernels are proven at their first use; each kind of fault is planted and has to be found."""

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from kernel_devices import computes_wrong, fails, fails_later, needs_compiler, on_cpu, on_gpu
from kernel_mutations import Mutation, in_sources
from metal_on_cpu import graph
from mlx import nn, optimizers
from mlx.utils import tree_flatten
from test_kernels_layers import LAYERS

import mlx_tlstm
from mlx_tlstm import TLSTM, TRNN, SequenceModel
from mlx_tlstm.kernels import dispatch, library, proof, trial, tuning
from mlx_tlstm.kernels.library import KERNELS, Kernel
from mlx_tlstm.recurrence.compilation import CompiledFunction
from mlx_tlstm.recurrence.loop import run

launch = Kernel.__call__

#: Of a proof: the three sequences have 12 steps together.
PROOF_LAUNCHES = 58


@pytest.fixture
def device(monkeypatch, tmp_path):
    """A device whose kernels run on the CPU, unproven, with a cache of its own; its launches."""
    monkeypatch.setattr(dispatch, "kernel_backend", lambda: ("metal", ""))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MLX_TLSTM_BACKEND", raising=False)
    proof.forget()
    with on_cpu(mode="fast", check=False) as calls:
        yield calls
    proof.forget()


def tlstm(**options):
    return TLSTM(2, 4, (3,), norm="channel", **options)


def configuration(layer=None):
    return trial.Configuration.of((layer or tlstm()).cell, batch_size=2)


def stored(tmp_path):
    return list((tmp_path / "mlx_tlstm" / "proofs").glob("*.json"))


def x_of(layer):
    return mx.array(np.random.default_rng(5).normal(size=(2, 3, layer.cell.input_size)))


def runs(layer):
    """Runs the layer, and says whether as kernels; the values are those of plain operations."""
    layer.cell.backend = "ops"
    expected = layer(x_of(layer))[0]
    layer.cell.backend = None
    assert mx.allclose(layer(x_of(layer))[0], expected, atol=1e-5)
    return not layer.cell.active_transition(2).backend.plain


class TestRight:
    def test_kernels_run_and_are_proven_once(self, device, tmp_path):
        layer = tlstm()
        assert runs(layer)
        assert len(stored(tmp_path)) == 1
        proving = len(device)
        assert runs(tlstm())  # another layer of the same sizes
        assert len(device) == proving + (proving - PROOF_LAUNCHES)

    def test_the_next_process_knows(self, device, tmp_path):
        assert runs(tlstm())
        proof.forget()
        device.clear()
        assert runs(tlstm())
        assert 0 < len(device) < PROOF_LAUNCHES

    @pytest.mark.parametrize(
        "other",
        [
            lambda: TLSTM(2, 5, (3,), norm="channel"),
            lambda: TLSTM(2, 4, (4,), norm="channel"),
            lambda: TLSTM(2, 4, (3,), 2, norm="channel"),
            lambda: TLSTM(2, 4, (3,), norm=None),
            lambda: TLSTM(2, 4, (3,), norm="channel", memory_convolution=False),
            lambda: TLSTM(2, 4, (3,), norm="channel", recompute=True),
            lambda: TRNN(2, 4, (3,)),
        ],
    )
    def test_what_needs_a_proof_of_its_own(self, other):
        assert configuration(other()) != configuration()
        assert configuration(other()) == configuration(other())

    def test_type_and_tiles_need_a_proof_of_their_own(self):
        layer = tlstm()
        layer.set_dtype(mx.bfloat16)
        assert configuration(layer) != configuration()
        large = TLSTM(2, 64, (4, 4))
        assert trial.Configuration.of(large.cell, 1) != trial.Configuration.of(large.cell, 512)

    def test_the_tiles_of_the_layers_own_batch_are_proven(self, device):
        layer = TLSTM(2, 20, (4, 4))
        for batch_size in (1, 512):
            device.clear()
            one = trial.Configuration.of(layer.cell, batch_size)
            trial.prove(one)
            rows = {c.template["BM"] for c in device if c.kernel == "convolution_forward"}
            assert rows == {dict(one.tiles)["convolution_forward"].rows}
        assert rows == {64}

    def test_nothing_of_the_users_changes(self, device):
        mx.random.seed(3)
        layer, state = tlstm(), np.array(mx.random.state[0])
        limits = mx.set_cache_limit(1 << 20), mx.set_memory_limit(1 << 34)
        try:
            layer.cell.active_transition(2)
            assert (mx.set_cache_limit(limits[0]), mx.set_memory_limit(limits[1])) == (
                1 << 20,
                1 << 34,
            )
        finally:
            mx.set_cache_limit(limits[0])
            mx.set_memory_limit(limits[1])
        assert np.array_equal(np.array(mx.random.state[0]), state)
        assert mx.default_device() == mx.cpu

    def test_rounding_of_the_device_is_no_fault(self, device, monkeypatch):
        """Products of factors with ten bits, as TF32's, where MLX's own have them too."""

        def rounded(array):
            bits = array.view(mx.uint32)
            return ((bits + 0x1000) & 0xFFFFE000).view(mx.float32)

        def coarse(self, inputs, **rest):
            if self.name.startswith("convolution"):
                inputs = [rounded(array) for array in inputs]
            return launch(self, inputs, **rest)

        monkeypatch.setattr(Kernel, "__call__", coarse)
        layer = TLSTM(2, 20, (3,), norm="channel")
        with pytest.raises(trial.KernelError, match="wrong numbers"):
            trial.prove(configuration(layer))
        matmul = mx.array.__matmul__
        monkeypatch.setattr(mx.array, "__matmul__", lambda a, b: matmul(rounded(a), rounded(b)))
        trial.prove(configuration(layer))
        assert 1e-4 < trial.measured_rounding(configuration(layer)) < 1e-3


OUTPUTS = [(name, output) for name in sorted(KERNELS) for output in KERNELS[name].outputs]


@needs_compiler
class TestFaults:
    @pytest.mark.parametrize(("kernel", "output"), OUTPUTS)
    def test_wrong_numbers_in_each_output(self, device, monkeypatch, kernel, output):
        computes_wrong(monkeypatch, kernel, KERNELS[kernel].outputs.index(output), 1.001)
        layer = TRNN(2, 4, (3,)) if kernel == "tanh_backward" else tlstm()
        around_products = kernel in ("convolution_unfold", "convolution_fold")
        with tuning.forced(None) if around_products else contextlib.nullcontext():
            one = configuration(layer)
        with pytest.raises(trial.KernelError, match="wrong numbers"):
            trial.prove(one)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_numbers_that_are_not_finite(self, device, monkeypatch, value):
        computes_wrong(monkeypatch, "memory_forward", 1, value)
        with pytest.raises(trial.KernelError, match="wrong numbers"):
            trial.prove(configuration())

    def test_one_wrong_variant(self, device, monkeypatch):
        """Of memory_backward, whatever follows or does not follow a step."""
        for output, cell, later in [
            (1, 0, 0),
            (1, 1, 0),
            (1, 0, 1),
            (1, 1, 1),
            (0, 0, 1),
            (0, 1, 1),
        ]:
            flags = {"d_output": output, "d_cell": cell, "later_carried": later}

            def follows(inputs, flags=flags, **_):
                return all((inputs[name].ndim > 1) == flag for name, flag in flags.items())

            with monkeypatch.context() as patch:
                computes_wrong(patch, "memory_backward", 0, 1.001, follows)
                with pytest.raises(trial.KernelError, match="wrong numbers"):
                    trial.prove(configuration())

    def test_a_kernel_that_does_not_compile(self, device):
        nonsense = Mutation("memory_backward.metal", "has_output && p", "nonsense && p")
        # Its place is in our file and not in MLX's header, which MLX puts in front.
        place = r"do not run right on .*mlx_tlstm/memory_backward\.metal:\d+:\d+: error: .*nonsense"
        with in_sources(nonsense), pytest.warns(RuntimeWarning, match=place) as caught:
            assert not runs(tlstm())
        assert len(caught) == 1

    def test_a_header_that_does_not_compile_is_named(self, device):
        nonsense = Mutation("geometry.h", "struct Geometry {", "struct Geometry { nonsense x;")
        place = r"mlx_tlstm/geometry\.h:\d+:\d+: error: .*nonsense"
        with in_sources(nonsense), pytest.raises(trial.KernelError, match=place):
            trial.prove(configuration())

    def test_the_error_behind_a_compilers_warnings_is_told(self, device, monkeypatch):
        """MLX's own header makes some in the Metal of macOS 14 and 15."""
        place = "mlx/backend/metal/kernels/utils.h:7"
        warning = "warning: inline variables are a C++17 extension [-Wc++17-extensions]\n  inline\n"
        text = "[metal::Device] Unable to build metal library from source\n"
        text += "".join(f"{place}{i}:3: {warning}  ^\n" for i in range(9))
        text += "mlx_tlstm/tiles.h:60:10: error: no matching function\n" + 9 * "note: candidate\n"
        fails(monkeypatch, "memory_forward", RuntimeError(text))
        told = re.escape(
            "(RuntimeError: [metal::Device] Unable to build metal library from source "
            "mlx_tlstm/tiles.h:60:10: error: no matching function note: candidate"
        )
        with pytest.raises(trial.KernelError, match=told) as raised:
            trial.prove(configuration())
        assert str(raised.value.__cause__) == text

    def test_the_home_folder_is_not_named(self, device, monkeypatch):
        monkeypatch.setenv("HOME", "/Users/ann")
        text = "Failed to load the metallib /Users/ann/lib/mlx.metallib"
        fails(monkeypatch, "memory_forward", RuntimeError(text))
        with pytest.raises(trial.KernelError, match=r"load the metallib ~/lib/mlx\.metallib"):
            trial.prove(configuration())

    def test_a_late_error_hits_nobody_else(self, device, monkeypatch):
        """MLX raises an error of what still runs at the next operation, whoever's it is."""
        fails(monkeypatch, "memory_forward", RuntimeError("at once"), before=fails_later)
        with pytest.raises(trial.KernelError, match="at once"):
            trial.prove(configuration())
        mx.synchronize(mx.default_stream(mx.cpu))
        assert mx.array_equal(mx.ones(3) + 1, mx.full(3, 2.0))

    def test_a_launch_that_is_too_large(self, device, monkeypatch):
        monkeypatch.setattr(Kernel, "__call__", limited(64))
        with pytest.warns(RuntimeWarning, match=r"Thread group size \(128\) is greater") as caught:
            assert not runs(tlstm())
        assert len(caught) == 1

    def test_one_warning_and_nothing_stored(self, device, monkeypatch, tmp_path):
        computes_wrong(monkeypatch, "memory_gather", 0, 2.0)
        with pytest.warns(RuntimeWarning, match=r"wrong numbers.* gradient of cell by 1.0e\+00"):
            assert not runs(tlstm())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not runs(tlstm())
        assert stored(tmp_path) == []

    @pytest.mark.parametrize("by", ["argument", "environment"])
    def test_a_backend_that_was_named_raises_the_same_text(self, device, monkeypatch, by):
        computes_wrong(monkeypatch, "memory_gather", 0, 2.0)
        layer = tlstm()
        with pytest.warns(RuntimeWarning) as caught:
            layer(x_of(layer))
        if by == "argument":
            layer.cell.backend = "metal"
        else:
            monkeypatch.setenv("MLX_TLSTM_BACKEND", "metal")
        with pytest.raises(trial.KernelError) as raised:
            layer(x_of(layer))
        assert str(raised.value) == str(caught[0].message)
        monkeypatch.setenv("MLX_TLSTM_BACKEND", "ops")
        layer.cell.backend = None
        layer(x_of(layer))

    def test_broken_products_account_for_nothing(self, device, monkeypatch):
        matmul = mx.array.__matmul__
        monkeypatch.setattr(mx.array, "__matmul__", lambda a, b: 1.01 * matmul(a, b))
        with pytest.raises(trial.KernelError, match=r"matrix product is off by 1\.0e-02"):
            trial.prove(configuration())


def limited(threads):
    """A device that grants a threadgroup no more threads, in MLX's words."""

    def launched(self, inputs, *, threads, limit=threads, **rest):
        if threads > limit:
            raise ValueError(
                f"Thread group size ({threads}) is greater than  the maximum allowed threads per "
                f"threadgroup ({limit})."
            )
        return launch(self, inputs, threads=threads, **rest)

    return launched


@needs_compiler
def test_fewer_threads_where_a_pipeline_has_no_more(device, monkeypatch, tmp_path):
    """Layer normalisation takes 384; shader validation can lower a pipeline's limit."""
    for limit, granted in [(1024, 384), (300, 256), (128, 128)]:
        proof.forget()
        for file in stored(tmp_path):
            file.unlink()
        monkeypatch.setattr(Kernel, "__call__", limited(limit))
        layer = TLSTM(2, 4, (4, 4), norm="layer")
        assert layer.cell.active_transition(2).backend.threads == granted
        proof.forget()
        assert runs(layer)  # from the disk
        most = max(call.threadgroup[0] for call in device if call.kernel == "memory_forward")
        assert most == granted or limit == 1024
        device.clear()


@needs_compiler
class TestCache:
    @pytest.mark.parametrize("damage", ["torn", "empty", "other", "list", "variant"])
    def test_a_damaged_record_is_proven_anew(self, device, tmp_path, damage):
        assert runs(tlstm())
        [file] = stored(tmp_path)
        whole = file.read_text()
        record = json.loads(whole)
        record["variant"] = 7
        texts = {"torn": whole[: len(whole) // 2], "empty": "", "other": "{}", "list": "[1]"}
        file.write_text(texts.get(damage, json.dumps(record)))
        proof.forget()
        device.clear()
        assert runs(tlstm())
        assert len(device) > PROOF_LAUNCHES
        assert file.read_text() == whole

    @pytest.mark.parametrize("change", ["mlx", "kernels", "device", "system", "validation"])
    def test_another_version_is_proven_anew(self, device, tmp_path, monkeypatch, change):
        assert runs(tlstm())
        proof.forget()
        device.clear()
        if change == "mlx":
            monkeypatch.setattr(mx, "__version__", "0.99")
        elif change == "kernels":
            texts = library.texts()
            monkeypatch.setattr(library, "texts", lambda: texts | {"memory_forward": "changed"})
        elif change == "device":
            monkeypatch.setattr("mlx_tlstm.kernels.tuning.device", lambda: "Apple M9")
        elif change == "system":
            monkeypatch.setattr(platform, "platform", lambda: "macOS-99.0")
        else:
            monkeypatch.setenv("MTL_SHADER_VALIDATION", "1")
        assert runs(tlstm())
        assert len(device) > PROOF_LAUNCHES
        assert len(stored(tmp_path)) == 2

    def test_what_it_is_of(self):
        """The kernels' sources, and what the modules that launch them compute by."""
        names = {"memory_forward", "kernels/convolution.py", "recurrence/ordering.py"}
        package, launching = Path(mlx_tlstm.__file__).parent, library.texts()
        for name in ("convolution", "memory_update", "activation", "stacking", "windows"):
            text = (package / "kernels" / f"{name}.py").read_text()
            found = re.findall(r"^from mlx_tlstm\.((?:ops|recurrence)\.\w+|geometry) ", text, re.M)
            names |= {f"{module.replace('.', '/')}.py" for module in found}
        assert names <= launching.keys()

    def test_no_record_can_be_written(self, device, tmp_path):
        (tmp_path / "mlx_tlstm").write_text("a file where the folder would be")
        assert runs(tlstm())
        proof.forget()
        assert runs(tlstm())


def proven_by(program, tmp_path):
    """Exit code of a process whose layer's first kernel runs ``program``, on zeros."""
    lines = [
        "import os, mlx.core as mx",
        "from mlx_tlstm import TLSTM",
        "from mlx_tlstm.kernels import dispatch",
        "from mlx_tlstm.kernels.library import Kernel",
        "dispatch.kernel_backend = lambda: ('metal', '')",
        "def call(*_, **__):",
        f"    {program}",
        "Kernel.__call__ = call",
        "TLSTM(2, 4, (3,), norm='channel')(mx.zeros((2, 3, 2)))",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    return subprocess.run(command, env=environment, capture_output=True).returncode


@needs_compiler
class TestUnfinished:
    """What hangs the GPU or ends the process is not run into again at each start."""

    def test_a_process_that_ends_in_its_proof(self, device, tmp_path, monkeypatch):
        assert proven_by("os._exit(9)", tmp_path) == 9
        [file] = stored(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path.parent))
        named = re.escape(f"hung or was ended; to try again, remove ~/{tmp_path.name}/")
        with pytest.warns(RuntimeWarning, match=named) as caught:
            assert not runs(tlstm())
        assert len(caught) == 1
        assert file.name in str(caught[0].message)
        assert device == []
        with pytest.raises(trial.KernelError, match=named):
            tlstm(backend="metal")(x_of(tlstm()))
        file.unlink()
        proof.forget()
        assert runs(tlstm())

    def test_one_that_is_interrupted_leaves_nothing(self, tmp_path):
        assert proven_by("raise KeyboardInterrupt", tmp_path) != 0
        assert stored(tmp_path) == []

    @pytest.mark.parametrize(
        ("begun", "tried"),
        [
            ({"process": os.getppid()}, True),  # that proves at this moment
            ({"process": os.getppid(), "time": time.time() - 601}, False),  # a later one's number
            ({"process": os.getpid()}, False),  # an earlier one's number
            ({"process": 1 << 80}, True),
            ({"process": "1"}, True),
            ({"process": os.getpid(), "host": "another"}, True),
            ({"process": os.getpid(), "host": "another", "time": time.time() - 601}, False),
            ({"process": os.getpid(), "time": None}, True),
            ([], True),
        ],
    )
    def test_whose_proof_is_unfinished(self, device, tmp_path, begun, tried):
        assert runs(tlstm())
        [file] = stored(tmp_path)
        key = json.loads(file.read_text())["key"]
        if begun:
            begun = {"host": platform.node(), "time": time.time()} | begun
        file.write_text(json.dumps({"key": key, "begun": begun}))
        proof.forget()
        with contextlib.nullcontext() if tried else pytest.warns(RuntimeWarning, match="hung"):
            assert runs(tlstm()) == tried

    @pytest.mark.parametrize(("system", "same"), [("darwin", True), ("linux", False)])
    def test_a_mac_has_another_name_in_each_network(self, monkeypatch, system, same):
        monkeypatch.setattr(sys, "platform", system)
        hosts = set()
        for name in ("mac.local", "mac.fritz.box"):
            monkeypatch.setattr(platform, "node", lambda name=name: name)
            hosts.add(proof._host())
        assert (len(hosts) == 1) == same

    def test_proving_anew_tries_anyway(self, device, tmp_path):
        assert proven_by("os._exit(9)", tmp_path) == 9
        assert proof.prove_anew(configuration()).errors
        assert runs(tlstm())


@needs_compiler
def test_threads_that_come_at_once(device, monkeypatch):
    proofs, prove = [], proof.prove
    monkeypatch.setattr(proof, "prove", lambda one, _: proofs.append(one) or prove(one))
    layers, chosen = [tlstm() for _ in range(4)], []
    together = threading.Barrier(4)

    def first(layer):
        together.wait()
        chosen.append(layer.cell.active_transition(2))

    threads = [threading.Thread(target=first, args=(layer,)) for layer in layers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(proofs) == 1
    assert chosen == [layer.cell.kernel_transition for layer in layers]


@contextlib.contextmanager
def zeros_while_tracing(monkeypatch):
    """The stand-in cannot run on what has no value yet; launches in a trace are listed."""
    traced = []

    def launched(self, inputs, **rest):
        try:
            return launch(self, inputs, **rest)
        except RuntimeError:
            traced.append(self.name)
            kinds = zip(rest["shapes"], rest["dtypes"], strict=True)
            return [mx.zeros(*kind) for kind in kinds]

    with monkeypatch.context() as patch:
        patch.setattr(Kernel, "__call__", launched)
        yield traced


def _step(layer):
    """A user's own training step: gradient and update."""
    model, adam = SequenceModel(layer, 2), optimizers.Adam(1e-2)
    gradient = nn.value_and_grad(model, lambda model, x: model(x)[0].square().mean())
    state = [model.state, adam.state]

    def step(x):
        loss, gradients = gradient(model, x)
        adam.update(model, gradients)
        return loss

    return step, state


@needs_compiler
class TestInsideATrace:
    def test_of_a_users_own_compiled_step(self, device, monkeypatch, tmp_path):
        layer = tlstm()
        step, state = _step(layer)
        adapted = partial(mx.compile, inputs=state, outputs=state)(step)
        with zeros_while_tracing(monkeypatch) as traced:
            mx.eval(adapted(x_of(layer)), state)
        assert len(stored(tmp_path)) == 1
        assert "memory_backward" in traced

    def test_of_a_compiled_function(self, device, monkeypatch, tmp_path):
        layer = tlstm()
        model = SequenceModel(layer, 2)
        compiled = CompiledFunction(model, lambda model, x: model(x)[0])
        with zeros_while_tracing(monkeypatch) as traced:
            mx.eval(compiled(x_of(layer)))
        assert len(stored(tmp_path)) == 1
        assert "memory_forward" in traced

    def test_of_a_gradient(self, device):
        layer = tlstm()
        mx.eval(nn.value_and_grad(layer, lambda layer, x: layer(x)[0].sum())(layer, x_of(layer)))
        assert len(device) > PROOF_LAUNCHES

    @pytest.mark.parametrize("transform", [lambda f: f, mx.compile], ids=["plain", "compiled"])
    def test_a_fault_there_takes_plain_operations(self, device, monkeypatch, transform):
        computes_wrong(monkeypatch, "convolution_forward", 0, 1.01)
        layer = tlstm()
        parameters = layer.parameters()

        def loss(parameters, x):
            layer.update(parameters)
            return layer(x)[0].square().sum()

        gradients = {}
        for backend in (None, "ops"):
            layer.cell.backend = backend
            expected = pytest.warns(RuntimeWarning, match="wrong numbers")
            with expected if backend is None else contextlib.nullcontext():
                found = transform(mx.grad(loss))(parameters, x_of(layer))
            gradients[backend] = dict(tree_flatten(found))
            layer.update(parameters)
        for name, array in gradients["ops"].items():
            assert mx.array_equal(gradients[None][name], array), name
        layer.cell.backend = "metal"
        with pytest.raises(trial.KernelError, match="wrong numbers"):
            transform(mx.grad(loss))(parameters, x_of(layer))
        layer.update(parameters)


#: What a proof on a CPU may allow at most: smaller faults than these it finds.
LARGEST_TOLERANCES = {mx.float32: 5e-5, mx.float16: 0.025, mx.bfloat16: 0.2}


@pytest.mark.standin(mode="fast", check=False)
@pytest.mark.parametrize("products", [False, True], ids=["tiles", "products"])
@pytest.mark.parametrize("dtype", LARGEST_TOLERANCES)
@pytest.mark.parametrize("name", LAYERS)
def test_these_layers_are_right(kernel_calls, name, dtype, products):
    layer = LAYERS[name]()
    layer.set_dtype(dtype)
    with tuning.forced(None) if products else contextlib.nullcontext():
        one = trial.Configuration.of(layer.cell, batch_size=15)
    errors = trial.prove(one).errors
    largest = LARGEST_TOLERANCES[dtype]
    assert all(error < tolerance < largest for error, tolerance in errors.values())


GPUS = [
    pytest.param("metal", marks=pytest.mark.metal),
    pytest.param("cuda", marks=pytest.mark.cuda),
]


@pytest.mark.parametrize("backend", GPUS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_these_layers_are_right_compiled(backend, name, dtype):
    """As training runs them, on a GPU; without one, see the next test."""
    layer = LAYERS[name]()
    layer.set_dtype(dtype)
    with on_gpu(backend):
        trial.prove(trial.Configuration.of(layer.cell, batch_size=15), compiled=True)


@needs_compiler
@pytest.mark.parametrize(
    "make",
    [
        lambda: TLSTM(4, 7, (2, 3), norm="channel"),
        lambda: TLSTM(4, 7, (3,), norm="layer", recompute=True),
        lambda: TLSTM(4, 7, (3,), memory_convolution=False),
        lambda: TRNN(4, 7, (2, 3)),
    ],
)
def test_the_graph_of_a_compiled_gradient(make, monkeypatch):
    """Launches, inputs, templates and order of the graph that mx.compile is given, by its values.

    Not seen here: what mx.compile makes of the operations between launches; the tests above see
    it on a GPU.
    """
    one = configuration(make())
    numbers = trial.Trial.of(one)
    steps, skip, final_step = trial.SEQUENCES[0]
    count = len(numbers.inputs)

    def gradients(transition):
        def gradient(*arrays):
            primals, cotangents = arrays[:count], arrays[count:]

            def sequence(projected, *rest):
                state, parameters = rest[: numbers.width], rest[numbers.width :]
                outputs, final = run(
                    transition,
                    list(parameters),
                    projected,
                    tuple(state),
                    skip=skip,
                    final_step=final_step,
                    keep="states" if numbers.recompute else "residuals",
                )
                return [outputs, *final]

            return mx.vjp(sequence, list(primals), list(cotangents))[1]

        return mx.compile(gradient)

    cotangents = (numbers.cotangents[0][: steps - skip], *numbers.cotangents[1:])
    arrays = [mx.array(array) for array in (*numbers.inputs, *cotangents)]
    expected = gradients(one.plain)(*arrays)
    library.forget_built_kernels()
    # What MLX exports in its place; neither changes a value.
    monkeypatch.setattr("mlx_tlstm.recurrence.loop.after", mx.depends)
    found, launched = graph.run(gradients(one.kernels), *arrays)
    library.forget_built_kernels()
    for got, wanted in zip(found, expected, strict=True):
        assert trial.relative_error(got, np.array(wanted)) < 1e-5
    assert launched.count("convolution_forward") == steps * (1 + numbers.recompute)
    assert launched.count("convolution_weight_gradient") == 2


def test_the_command_ends_in_one_line(tmp_path):
    """Named kernels that are wrong end a training before it begins."""
    program = (
        "import mlx_tlstm, mlx.core as mx\n"
        "from mlx_tlstm.kernels import dispatch\n"
        "from mlx_tlstm.train import train\n"
        "dispatch.kernel_backend = lambda: ('metal', '')\n"
        "def broken(**_): raise RuntimeError('no such kernel')\n"
        "mx.fast.metal_kernel = mx.fast.cuda_kernel = broken\n"
        "train(['--samples', '30', '--out', 'run'])\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "MLX_TLSTM_BACKEND": "metal",
            "XDG_CACHE_HOME": str(tmp_path),
        },
    )
    assert process.returncode == 1
    assert process.stderr.startswith("Error: [kernels] The kernels of TLSTM P=(4, 4)")
    assert "no such kernel" in process.stderr
    assert process.stderr.count("\n") == 1

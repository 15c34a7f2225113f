"""The check of a device: its parts in order, each into one record that is fit for JSON."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_tlstm.checking import chains
from mlx_tlstm.checking.chains import Problem
from mlx_tlstm.checking.passes import operations_per_step
from mlx_tlstm.checking.settings import INPUT_SIZE, product_rate, settings
from mlx_tlstm.checking.timing import machine, measure
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import dispatch, proof, tiles, trial, tuning
from mlx_tlstm.kernels.trial import Configuration, KernelError, Trial
from mlx_tlstm.layers import TLSTM
from mlx_tlstm.layers.base import DTYPES
from mlx_tlstm.layers.variants import VARIANTS, make_layer
from mlx_tlstm.reference import ReferenceBackend

#: Seconds after which nothing new begins, on a device with kernels and on a CPU.
SECONDS, SECONDS_ON_CPU = 110.0, 50.0
#: Share of them after which no further kernel or layer begins, which some compilers take long for.
_KERNELS_END, _LAYERS_END = 0.4, 0.7

#: The variants that kernels run; the stacked LSTM has plain operations only.
VARIANTS_WITH_KERNELS = [name for name, one in VARIANTS.items() if one.kernels]
#: Plain operations and equations differ by rounding in float32, which the steps multiply.
EQUATIONS_TOLERANCE = 1e-4
#: What single kernels are given: the paper's 3D tLSTM of memorization, L = 10.
PROBLEM = Problem(Geometry((10, 10), (3, 3)), hidden_size=100, batch_size=15)

_LAUNCHES = 10  # of a kernel, timed together
_SUM = 2.0**-17  # rounding of sums of a few ten thousand terms in float32
_ROUNDINGS = 8  # of a product, that a kernel's result may be off by besides


class Survey:
    """One check of the default device.

    Args:
        say: Takes a line of text as soon as it is known.
        save: Takes the record after each part.
        seconds: How long until no new part begins; ``None`` takes :data:`SECONDS`.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        save: Callable[[dict[str, Any]], None] = lambda record: None,
        seconds: float | None = None,
    ) -> None:
        self._say = say
        self._save = save
        self.backend, self._reason = dispatch.kernel_backend()
        default = SECONDS if self.backend else SECONDS_ON_CPU
        self._begin, self._seconds = time.monotonic(), default if seconds is None else seconds
        self._all_kernels = True
        self.record: dict[str, Any] = {
            "machine": dataclasses.asdict(machine()),
            "device": dict(mx.device_info()),
            "environment": {name: os.environ.get(name) for name in proof.ENVIRONMENT},
            "backend": self.backend,
            "plain": [],
            "proofs": [],
            "kernels": [],
            "launches a step": {},
            "settings": [],
            "not checked": [],
        }

    def run(self) -> bool:
        """Check everything, and return whether all that could be checked is right."""
        for name, value in self.record["machine"].items():
            self._say(f"{name}: {value}")
        self._plain()
        if self.backend is None:
            self._leave_out(f"kernels: {self._reason}")
        else:
            self._kernels()
            self._proofs()
            self._launches()
        self._settings()
        right, verdict = self._verdict()
        self.record |= {"right": right, "verdict": verdict}
        self._save(self.record)
        for left_out in self.record["not checked"]:
            self._say(f"not checked: {left_out}")
        self._say(verdict)
        return right

    def _late(self, what: str, share: float = 1.0) -> bool:
        late = time.monotonic() >= self._begin + share * self._seconds
        if late:
            self._leave_out(f"{what}: the time was up (--seconds)")
        return late

    def _leave_out(self, what: str) -> None:
        self.record["not checked"].append(what)

    def _enter(self, part: str, entry: dict[str, Any]) -> None:
        self.record[part].append(entry)
        self._save(self.record)

    def _compare(self, part: str, name: str, error: float, tolerance: float, **more: Any) -> None:
        right = error <= tolerance
        self._enter(
            part, {"name": name, "right": right, "error": error, "tolerance": tolerance, **more}
        )
        word = "right" if right else "WRONG"
        times = "".join(f", {key} {value:.4g}" for key, value in more.items() if key.endswith("ms"))
        self._say(f"{name}: {word}, off by {error:.1e} of {tolerance:.1e} allowed{times}")

    def _failed(self, part: str, name: str, error: Exception) -> None:
        reason = " ".join(str(error).split())
        self._enter(part, {"name": name, "right": False, "reason": reason})
        self._say(f"{name}: FAILED: {reason}")

    def _plain(self) -> None:
        """Plain operations on the CPU, with the gradients that they are written with, against the
        equations with MLX's own."""
        for variant in VARIANTS_WITH_KERNELS:
            layer = make_layer(variant, 3, 5, 3 if VARIANTS[variant].axes == 1 else 2)
            configuration = Configuration.of(layer.cell, trial.BATCH_SIZE)
            numbers, plain = Trial.of(configuration), configuration.plain
            equations = plain.on(ReferenceBackend(configuration.geometry, configuration.update))
            with mx.stream(mx.cpu):
                found = numbers.results(plain, mx.float32)
                expected = numbers.results(equations, mx.float32, keep="nothing")
            pairs = zip(itertools.chain(*found), itertools.chain(*expected), strict=True)
            error = max(itertools.starmap(trial.relative_error, pairs))
            name = f"plain operations on the CPU, {variant}, beside the equations"
            self._compare("plain", name, error, EQUATIONS_TOLERANCE)

    def _kernels(self) -> None:
        """Each kernel and type: its numbers and its time beside plain operations'."""
        for dtype in DTYPES:
            problem = dataclasses.replace(PROBLEM, dtype=getattr(mx, dtype))
            geometry = problem.geometry
            sizes = (problem.hidden_size, geometry.tensor_size, geometry.kernel_size)
            layer = TLSTM(INPUT_SIZE, *sizes, norm=problem.norm)
            layer.set_dtype(problem.dtype)
            configuration = Configuration.of(layer.cell, problem.batch_size)
            for name in chains.CHAINS | chains.RARER_CHAINS:
                if self._late(f"{name}, {dtype}", _KERNELS_END):
                    self._all_kernels = False
                    continue
                chain = chains.make_chain(problem, name)
                for choice in self._choices(name, problem):
                    own = choice or not name.startswith("convolution")
                    full = f"{name}, {dtype}" if own else f"{name} as a product, {dtype}"
                    try:
                        rounding = trial.measured_rounding(configuration)
                        tolerance = _SUM + _ROUNDINGS * rounding
                        self._kernel(name, full, problem, chain, choice, tolerance)
                    except Exception as error:  # whatever a compiler or a driver has to say
                        self._failed("kernels", full, error)

    def _kernel(
        self,
        name: str,
        full: str,
        problem: Problem,
        chain: chains.Chain,
        tile: tiles.Tile | None,
        tolerance: float,
    ) -> None:
        plain = chains.make_chain(problem, name, plain=True)
        with tuning.forced(tile):
            found = chain.once()
            mx.eval(found)
        with mx.stream(mx.cpu):
            expected = chains.make_chain(problem, name, plain=True).once()
            pairs = zip(found, expected, strict=True)
            error = max(trial.relative_error(*map(trial.to_numpy, pair)) for pair in pairs)

        def kernel() -> None:
            with tuning.forced(tile):
                chain.run(_LAUNCHES)

        runs = {"kernel": kernel, "plain": lambda: plain.run(_LAUNCHES)}
        product = chains.bare_product(problem, name)
        if product is not None:
            runs["bare product"] = lambda: product.run(_LAUNCHES)
        timings = measure(runs, rounds=3, warmup=1, pause=0.0)
        times = {f"{key} ms": timing.median / _LAUNCHES for key, timing in timings.items()}
        self._compare("kernels", full, error, tolerance, **times)

    def _choices(self, name: str, problem: Problem) -> list[tiles.Tile | None]:
        """What layers would launch first, then the other of a tile and MLX's own product."""
        product = chains.products_of(problem).get(name)
        if product is None:
            return [None]
        own = tiles.choose(product.rows, product.columns)
        chosen = tuning.select(product)
        return [None, own] if chosen is None else [chosen, None]

    def _proofs(self) -> None:
        """Steps as layers run them: of the tasks' settings, of all variants, of all types."""
        configurations: dict[Configuration, str] = {}
        for setting in settings():
            one = Configuration.of(setting.layer().cell, setting.rows)
            configurations.setdefault(one, str(setting))
        for dtype in DTYPES:
            for variant in VARIANTS_WITH_KERNELS:
                layer = make_layer(variant, INPUT_SIZE, 20, 3, recompute=dtype == "bfloat16")
                layer.set_dtype(getattr(mx, dtype))
                one = Configuration.of(layer.cell, 15)
                configurations.setdefault(one, f"{variant}, {dtype}")
        for configuration, name in configurations.items():
            for compiled in (False, True):
                full = f"{name}{', compiled' if compiled else ''}"
                if self._late(f"layer, {full}", _LAYERS_END):
                    self._all_kernels = False
                    continue
                try:
                    found = trial.prove(configuration, compiled)
                except KernelError as error:
                    self._failed("proofs", f"layer, {full}", error)
                    continue
                worst = max(found.errors.values(), key=lambda pair: pair[0] / pair[1])
                threads = found.kernels.backend.threads
                self._compare("proofs", f"layer, {full}", *worst, threads=threads)

    def _launches(self) -> None:
        """Launches of a time step, forward and backward, with kernels and without."""
        for backend in (self.backend, "ops"):
            if self._late(f"launches a step, {backend}"):
                continue
            layer = make_layer("3d-tlstm+cn", INPUT_SIZE, 20, 3, backend=backend)
            try:
                count = operations_per_step(layer)
            except KernelError:
                continue  # said above
            self.record["launches a step"][backend] = count
            self._say(f"launches of a time step, forward and backward, {backend}: {count:.2f}")

    def _settings(self) -> None:
        """What is quickest at the sizes that tasks train at."""
        candidates = [("cpu", "ops")]
        if mx.default_device().type == mx.gpu:
            candidates += [("gpu", "ops"), *([("gpu", self.backend)] if self.backend else [])]
        rates = {device: product_rate(device) for device, _ in candidates}
        for setting in settings():
            if self._late(f"times of {setting}"):
                continue
            steps, times, left_out = setting.step_times(candidates, rates)
            for name, reason in left_out.items():
                self._leave_out(f"time of {setting} on {name}: {reason}")
            entry = {"name": str(setting), "steps": steps, "step ms": times}
            entry["quickest"] = min(times, key=times.__getitem__) if times else None
            self._enter("settings", entry | {"left out": left_out})
            words = ", ".join(f"{name} {ms:.3g}" for name, ms in times.items())
            quickest = f"; quickest: {entry['quickest']}" if len(times) > 1 else ""
            self._say(f"{setting}: ms a time step, forward and backward: {words or '–'}{quickest}")

    def _verdict(self) -> tuple[bool, str]:
        """Whether all is right, and one line that says so."""
        entries = [e for part in ("plain", "kernels", "proofs") for e in self.record[part]]
        wrong = [entry["name"] for entry in entries if not entry["right"]]
        if wrong:
            return False, f"wrong on this device: {'; '.join(wrong)}"
        if self.backend is None:
            return True, f"plain operations right; kernels not checked ({self._reason})"
        if not self.record["proofs"]:
            return True, "plain operations right; kernels not checked (the time was up)"
        kernels = f"gpu {self.backend}"
        timed = [entry for entry in self.record["settings"] if kernels in entry["step ms"]]
        slower = [f"{e['name']} ({e['quickest']})" for e in timed if e["quickest"] != kernels]
        if slower:
            verdict = f"kernels right, but not the quickest for {'; '.join(slower)}"
        elif timed:
            verdict = "kernels right and faster on this device"
        else:
            verdict = "kernels right on this device, their speed not measured"
        return True, verdict if self._all_kernels else f"{verdict}, as far as there was time"

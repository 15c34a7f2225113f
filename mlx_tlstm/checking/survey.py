"""The check of a device: its parts in order, each into one record that is fit for JSON."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_tlstm.checking import chains, comparisons
from mlx_tlstm.checking.chains import Problem
from mlx_tlstm.checking.passes import operations_per_step
from mlx_tlstm.checking.settings import (
    INPUT_SIZE,
    LeftOutError,
    product_rate,
    settings,
    step_times,
)
from mlx_tlstm.checking.timing import device_facts, machine
from mlx_tlstm.geometry import Geometry
from mlx_tlstm.kernels import dispatch, faults, proof
from mlx_tlstm.kernels.trial import Configuration
from mlx_tlstm.layers.base import DTYPES
from mlx_tlstm.layers.variants import VARIANTS, make_layer

#: Seconds after which nothing new begins, on a device with kernels and on a CPU.
SECONDS, SECONDS_ON_CPU = 110.0, 50.0
#: By part of the record: the share of them after which nothing more of it begins, since some
#: compilers take long for kernels and layers; ``None``: all of it is done.
_ENDS = {
    "plain": None,
    "kernels": 0.4,
    "proofs": 0.7,
    "launches a step": 1.0,
    "products": None,
    "settings": 1.0,
}

#: The variants that kernels run; the stacked LSTM has plain operations only.
VARIANTS_WITH_KERNELS = [name for name, one in VARIANTS.items() if one.axes]
#: Plain operations and equations differ by rounding in float32, which the steps multiply.
EQUATIONS_TOLERANCE = 1e-4
#: What single kernels are given: the paper's 3D tLSTM of memorization, L = 10.
PROBLEM = Problem(Geometry((10, 10), (3, 3)), hidden_size=100, batch_size=15)


class Survey:
    """One check of the default device.

    Args:
        say: Takes a line of text as soon as it is known.
        save: Takes the record before each thing that is tried, and at the end.
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
        self._late: set[str] = set()
        self.record: dict[str, Any] = {
            "machine": dataclasses.asdict(machine()),
            "device": device_facts(mx.default_device()),
            "environment": {name: os.environ.get(name) for name in proof.ENVIRONMENT},
            "backend": self.backend,
            **{part: [] for part in _ENDS},
            "not checked": [],
        }

    def run(self) -> bool:
        """Check everything, and return whether all that could be checked is right."""
        self._save(self.record)
        for name, value in self.record["machine"].items():
            self._say(f"{name}: {value}")
        self._plain()
        if self.backend is None:
            self._leave_out("kernels", self._reason)
        else:
            self._kernels()
            self._proofs()
            self._launches()
        self._settings()
        self.record.pop("running", None)
        right, verdict = self._verdict()
        self.record |= {"right": right, "verdict": verdict}
        self._save(self.record)
        for left_out in self.record["not checked"]:
            self._say(f"not checked: {left_out}")
        self._say(verdict)
        return right

    def _tried(self, part: str, name: str, compute: Callable[..., Any], *arguments: Any) -> Any:
        """What ``compute(*arguments)`` returns; ``None`` where the record says why there is none.

        All that a compiler, a driver or a GPU may fail at goes through here. Of what hangs or ends
        the process, the saved record says that it was running.
        """
        share = _ENDS[part]
        if share is not None and time.monotonic() >= self._begin + share * self._seconds:
            self._late.add(part)
            self._leave_out(name, "the time was up (--seconds)")
            return None
        self.record["running"] = name
        self._save(self.record)
        try:
            return compute(*arguments)
        except LeftOutError as reason:
            self._leave_out(name, str(reason))
        except Exception as error:
            faults.settle()
            reason = faults.whole(error)
            self.record[part].append({"name": name, "right": False, "reason": reason})
            self._say(f"{name}: FAILED: {faults.in_a_line(error)}")
        return None

    def _leave_out(self, what: str, reason: str) -> None:
        self.record["not checked"].append(f"{what}: {reason}")

    def _compare(self, part: str, name: str, error: float, tolerance: float, **more: Any) -> None:
        right = error <= tolerance
        entry = {"name": name, "right": right, "error": error, "tolerance": tolerance, **more}
        self.record[part].append(entry)
        word = "right" if right else "WRONG"
        times = "".join(f", {key} {value:.4g}" for key, value in more.items() if key.endswith("ms"))
        self._say(f"{name}: {word}, off by {error:.1e} of {tolerance:.1e} allowed{times}")

    def _plain(self) -> None:
        """Plain operations on the CPU, with the gradients that they are written with, against the
        equations with MLX's own."""
        for variant in VARIANTS_WITH_KERNELS:
            name = f"plain operations on the CPU, {variant}, beside the equations"
            error = self._tried("plain", name, comparisons.plain_operations, variant)
            if error is not None:
                self._compare("plain", name, error, EQUATIONS_TOLERANCE)

    def _kernels(self) -> None:
        """Each kernel and type: its numbers and its time beside plain operations'."""
        for dtype in DTYPES:
            problem = dataclasses.replace(PROBLEM, dtype=getattr(mx, dtype))
            for kernel in chains.CHAINS | chains.RARER_CHAINS:
                for as_product in (False, True)[: 1 + (kernel in chains.products_of(problem))]:
                    name = f"{kernel}{' as a product' if as_product else ''}, {dtype}"
                    found = self._tried(
                        "kernels", name, comparisons.kernel, problem, kernel, as_product
                    )
                    if found:
                        self._compare("kernels", name, *found[:2], **found[2])

    def _proofs(self) -> None:
        """Steps as layers run them: of the tasks' settings, of all variants, of all types."""
        layers = self._tried("proofs", "layers", _configurations) or {}
        for configuration, layer in layers.items():
            for compiled in (False, True):
                name = f"layer, {layer}{', compiled' if compiled else ''}"
                found = self._tried("proofs", name, proof.prove_anew, configuration, compiled)
                if found:
                    worst = max(found.errors.values(), key=lambda pair: pair[0] / pair[1])
                    threads = found.kernels.backend.threads
                    self._compare("proofs", name, *worst, threads=threads)

    def _launches(self) -> None:
        """Launches of a time step, forward and backward, with kernels and without."""
        for backend in (self.backend, "ops"):
            name = f"launches of a time step, forward and backward, {backend}"
            count = self._tried("launches a step", name, _count_launches, backend)
            if count is not None:
                self.record["launches a step"].append({"name": backend, "launches": count})
                self._say(f"{name}: {count:.2f}")

    def _settings(self) -> None:
        """What is quickest at the sizes that tasks train at."""
        candidates = [("cpu", "ops")]
        if mx.default_device().type == mx.gpu and self.record["device"]:
            candidates += [("gpu", "ops"), *([("gpu", self.backend)] if self.backend else [])]
        rates = {}
        for device in dict(candidates):
            name = f"matrix products, {device}"
            rates[device] = self._tried("products", name, product_rate, device)
            if rates[device]:
                self.record["products"].append({"name": device, "operations/s": rates[device]})
                self._say(f"{name}: {rates[device]:.3g} multiplications and additions a second")
        for setting in settings():
            passes = {}
            for device, backend in candidates:
                if rate := rates[device]:
                    name = f"{device} {backend}"
                    what = f"time of {setting} on {name}"
                    one = self._tried("settings", what, setting.pass_on, device, backend, rate)
                    passes |= {name: one} if one else {}
            times = passes and self._tried("settings", f"times of {setting}", step_times, passes)
            if times:
                quickest = min(times, key=times.__getitem__)
                entry = {"name": str(setting), "step ms": times, "quickest": quickest}
                self.record["settings"].append(entry)
                words = ", ".join(f"{name} {ms:.3g}" for name, ms in times.items())
                words += f"; quickest: {quickest}" if len(times) > 1 else ""
                self._say(f"{setting}: ms a time step, forward and backward: {words}")

    def _verdict(self) -> tuple[bool, str]:
        """Whether all is right, and one line that says so."""
        entries = [entry for part in _ENDS for entry in self.record[part]]
        faulty = [entry["name"] for entry in entries if not entry.get("right", True)]
        if faulty:
            return False, f"not right on this device: {'; '.join(faulty)}"
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
        if self._late & {"kernels", "proofs"}:
            verdict += ", as far as there was time"
        return True, verdict


def _configurations() -> dict[Configuration, str]:
    """What is to be proven, each once, and who runs it."""
    found: dict[Configuration, str] = {}
    for setting in settings():
        found.setdefault(Configuration.of(setting.layer().cell, setting.rows), str(setting))
    for dtype in DTYPES:
        for variant in VARIANTS_WITH_KERNELS:
            layer = make_layer(variant, INPUT_SIZE, 20, 3, recompute=dtype == "bfloat16")
            layer.set_dtype(getattr(mx, dtype))
            found.setdefault(Configuration.of(layer.cell, 15), f"{variant}, {dtype}")
    return found


def _count_launches(backend: str) -> float:
    """Launches of a time step, forward and backward."""
    layer = make_layer("3d-tlstm+cn", INPUT_SIZE, 20, 3, backend=backend)
    proof.try_again(Configuration.of(layer.cell, batch_size=1))
    return operations_per_step(layer)

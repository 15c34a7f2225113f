"""The settings of the tasks, and what runs their layers the quickest."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import mlx.core as mx

from mlx_tlstm.checking.passes import Pass
from mlx_tlstm.checking.timing import measure
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.kernels import proof
from mlx_tlstm.kernels.trial import Configuration
from mlx_tlstm.layers.base import RecurrentLayer
from mlx_tlstm.layers.variants import make_layer
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training import memory_prediction

#: R of the layers that are timed; what it is hardly matters.
INPUT_SIZE = 64

_STEPS = 16  # of a sequence that is timed, at most
_OPERATIONS = 4e10  # multiplications and additions in it, for which steps are left out
_SECONDS_OF_A_PASS = 4.0  # a slower one is not waited for


class LeftOutError(Exception):
    """Why something is not timed."""


@dataclasses.dataclass(frozen=True)
class TimedPass:
    """A pass of so many time steps on a device, which a call runs."""

    device: str
    one: Pass
    steps: int

    def __call__(self) -> None:
        with on_device(self.device):
            self.one.run()


@dataclasses.dataclass(frozen=True)
class Setting:
    """The sizes at which tasks train.

    Args:
        names: The tasks, each with "quick" or "paper".
        config: Their settings.
        steps: T.
    """

    names: tuple[str, ...]
    config: TrainingConfig
    steps: int

    @property
    def rows(self) -> int:
        """B, the sequences that go through the network at once."""
        return self.config.batch_size // self.config.accumulate

    def layer(self, backend: str | None = None) -> RecurrentLayer:
        """The layer, untrained."""
        config = self.config
        layer = make_layer(
            config.variant,
            INPUT_SIZE,
            config.hidden_size,
            config.depth,
            kernel_size=config.kernel_size,
            recompute=config.recompute,
            backend=backend,
        )
        layer.set_dtype(getattr(mx, config.dtype))
        return layer

    def pass_on(self, device: str, backend: str, rate: float) -> TimedPass:
        """A forward and backward pass that has run once.

        Args:
            device: ``"cpu"`` or ``"gpu"``.
            backend: Of the layer.
            rate: :func:`product_rate` of the device.

        Raises:
            LeftOutError: It would take too long, or need too much memory.
        """
        with on_device(device):
            cell = self.layer("ops").cell
            rows = self.rows * cell.geometry.locations
            each = 6 * rows * cell.weight.size  # multiplications and additions of a step
            length = int(max(1, min(self.steps, _STEPS, _OPERATIONS // each - cell.delay)))
            steps = length + cell.delay
            if (seconds := each * steps / rate) > _SECONDS_OF_A_PASS:
                raise LeftOutError(f"would take some {seconds:.0f} s")
            if (needed := self._bytes(length)) > memory_prediction.limit() // 2:
                raise LeftOutError(f"needs {memory_prediction.describe(needed)}")
            layer = self.layer(backend)
            proof.try_again(Configuration.of(layer.cell, self.rows))
            one = TimedPass(device, Pass(layer, self.rows, length), steps)
        one()
        return one

    def _bytes(self, length: int) -> int:
        """Bytes that a training step with ``length`` inputs needs; a pass needs no more."""
        layer = self.layer("ops")
        return memory_prediction.predict(
            memory_prediction.StepSizes(
                layer=layer,
                input_size=INPUT_SIZE,
                parameters=layer.cell.weight.size,
                rows=self.rows,
                steps=length,
                loss_steps=length,
                output_size=INPUT_SIZE,
                recompute=self.config.recompute,
            )
        )

    def __str__(self) -> str:
        config = self.config
        sizes = f"L={config.depth}, M={config.hidden_size}, B={self.rows}"
        return f"{' and '.join(self.names)} ({config.variant}, {sizes})"


def settings() -> list[Setting]:
    """The settings of all tasks, the quick ones first; equal ones are listed once."""
    found: dict[tuple, Setting] = {}
    for scale in ("quick", "paper"):
        for name, task in TASKS.items():
            config = getattr(task, scale)()
            steps = task.sequence_steps(config.length)
            key = (config.variant, config.depth, config.hidden_size, config.batch_size, steps)
            names = found[key].names if key in found else ()
            found[key] = Setting((*names, f"{name} {scale}"), config, steps)
    return list(found.values())


def step_times(passes: Mapping[str, TimedPass]) -> dict[str, float]:
    """Milliseconds of a time step of passes that are timed side by side."""
    timings = measure(passes, rounds=3, warmup=0, seconds=2.0, pause=0.0)
    return {name: one.median / passes[name].steps for name, one in timings.items()}


def product_rate(device: str) -> float:
    """Multiplications and additions a second of a device's matrix products."""
    size = 1024 if device == "cpu" else 4096
    with on_device(device):
        left, right = (mx.random.normal((size, size), key=mx.random.key(i)) for i in range(2))
        mx.eval(left, right)
        timing = measure({"": lambda: mx.eval(left @ right)}, rounds=2, warmup=1, pause=0.0)[""]
    return 2 * size**3 / (timing.minimum / 1e3)


@contextlib.contextmanager
def on_device(device: str) -> Iterator[None]:
    """MLX's default device is ``"cpu"`` or ``"gpu"`` inside."""
    before = mx.default_device()
    mx.set_default_device(mx.Device(getattr(mx, device)))
    try:
        yield
    finally:
        mx.set_default_device(before)

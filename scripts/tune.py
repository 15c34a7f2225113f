"""Find the fastest tile of each convolution kernel on this device, and store it for the layers.

For each size the forward pass, the gradient of its inputs and the gradient of its weight are timed
with every tile and as plain operations: MLX's own matrix product on shifted rows. Where plain
operations win, layers run them. The numbers of every tile are compared before any is timed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import mlx_tlstm  # noqa: F401 (before MLX, so that it finds the fast BLAS)

# isort: split
import mlx.core as mx
from benchmarking.baselines import Size
from benchmarking.options import DTYPES, LAYER_SIZES, SizeType, tf32_text, unit_roundoff
from benchmarking.problems import problem_of
from benchmarking.report import Table

from mlx_tlstm.checking.chains import CHAINS, Chain, Problem, asked, label
from mlx_tlstm.checking.timing import Timing, measure
from mlx_tlstm.commands.base import Command
from mlx_tlstm.commands.paths import OutputFile, UserPath
from mlx_tlstm.kernels import convolution, dispatch, tuning
from mlx_tlstm.kernels.tiles import CANDIDATES, Tile
from mlx_tlstm.kernels.tuning import Product

CONVOLUTIONS = (convolution.FORWARD, convolution.INPUT_GRADIENT, convolution.WEIGHT_GRADIENT)

#: Rounding errors of a sum grow with the root of its terms, which are a few ten thousand.
_SUM = 2.0**-17
#: Roundings of factors, and of a result: a few of their size.
_ROUNDINGS = 4


def sensible(product: Product) -> list[Tile]:
    """The candidates of which half would not cover the product, and the smallest in any case."""
    fitting = [
        tile
        for tile in CANDIDATES
        if tile.rows < 2 * product.rows and tile.columns < 2 * product.columns
    ]
    return fitting or [CANDIDATES[-1]]


def check(chain: Chain, tiles: list[Tile], product: Product) -> None:
    """Compare each tile's numbers with plain operations in float32.

    Raises:
        click.ClickException: They differ; no tile is timed or stored on wrong numbers.
    """
    with tuning.forced(None):
        expected = chain.launch(*(array.astype(mx.float32) for array in chain.start))
    limit = _SUM + _ROUNDINGS * unit_roundoff(product.dtype)
    for tile in tiles:
        with tuning.forced(tile):
            results = chain.once()
        for got, value in zip(results, expected, strict=True):
            error = mx.linalg.norm((got.astype(mx.float32) - value).reshape(-1))
            relative = (error / mx.linalg.norm(value.reshape(-1))).item()
            if not relative <= limit:
                raise click.ClickException(
                    f"{product} with the tile {label(tile)} differs from plain operations by "
                    f"{relative:.1e}, more than {limit:.1e}: nothing is stored for this size"
                )


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Timings of one product by candidate, in milliseconds of ``launches`` launches."""

    product: Product
    timings: dict[Tile | None, Timing]
    launches: int

    @property
    def winner(self) -> Tile | None:
        return min(self.timings, key=lambda choice: self.timings[choice].median)

    def row(self) -> tuple[str, ...]:
        cells = [
            f"{self.timings[choice].median / self.launches:.4f}" if choice in self.timings else "–"
            for choice in (*CANDIDATES, None)
        ]
        ratio = self.timings[self.winner].ratio(self.timings[None])
        sizes = f"{self.product.rows}x{self.product.columns}x{self.product.depth}"
        return (self.product.kernel, sizes, *cells, label(self.winner), f"{ratio:.2f}")

    def winners(self) -> dict[Product, Tile | None]:
        """What to store: a sequence's last launch of the weight gradient has fewer steps."""
        if self.product.kernel != convolution.WEIGHT_GRADIENT.name:
            return {self.product: self.winner}
        step = self.product.depth // convolution.STEPS
        return {
            dataclasses.replace(self.product, depth=step * steps): self.winner
            for steps in range(1, convolution.STEPS + 1)
        }

    def as_dict(self) -> dict[str, Any]:
        return {
            "product": str(self.product),
            "launches": self.launches,
            "winner": label(self.winner),
            "timings": {label(choice): t.as_dict() for choice, t in self.timings.items()},
        }


def tune(problem: Problem, launches: int, options: dict[str, Any]) -> list[Measurement]:
    """Check and time the candidates of each convolution kernel."""
    chains = [CHAINS[kernel.name](problem) for kernel in CONVOLUTIONS]
    products = [asked(chain) for chain in chains]
    for chain, product in zip(chains, products, strict=True):
        tiles = sensible(product)
        check(chain, tiles, product)
        for tile in CANDIDATES:
            if tile not in tiles:
                click.echo(f"{product}: {label(tile)} left out, more than twice as large")
    measurements = []
    for chain, product in zip(chains, products, strict=True):
        choices = [*sensible(product), None]
        runs = {choice: _run(chain, choice, launches) for choice in choices}
        measurements.append(Measurement(product, measure(runs, **options), launches))
    return measurements


def _run(chain: Chain, choice: Tile | None, launches: int) -> Callable[[], None]:
    def run() -> None:
        with tuning.forced(choice):
            chain.run(launches)

    return run


@click.command(cls=Command, keeps_results=True, help=__doc__)
@click.option(
    "--size",
    "sizes",
    type=SizeType(),
    multiple=True,
    default=LAYER_SIZES,
    show_default="the benchmark's layers",
    help="Like 4x4,M=100,B=15,T=42; repeatable. T does not matter.",
)
@click.option(
    "--dtype", "dtypes", type=click.Choice(list(DTYPES)), multiple=True, default=("float32",)
)
@click.option("--no-memory-convolution", is_flag=True, help="Of layers without it.")
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1))
@click.option(
    "--launches", default=10, show_default=True, type=click.IntRange(1), help="In a round."
)
@click.option("--seconds", type=float, help="Start no further round of a product after so long.")
@click.option("--dry-run", is_flag=True, help="Measure and store nothing.")
@click.option("--output", type=UserPath(dir_okay=False), help="Store here.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option("--json", "json_path", type=OutputFile())
def main(
    sizes: tuple[Size, ...],
    dtypes: tuple[str, ...],
    no_memory_convolution: bool,
    rounds: int,
    launches: int,
    seconds: float | None,
    dry_run: bool,
    output: Path | None,
    markdown: bool,
    json_path: Path | None,
) -> None:
    backend, reason = dispatch.kernel_backend()
    if backend is None:
        raise click.ClickException(f"no kernels run here, so there is nothing to tune: {reason}")
    click.echo(f"device: {tuning.device()}, {backend}\nTF32: {tf32_text()}")
    options = {"rounds": rounds, "warmup": 1, "seconds": seconds}
    record = []
    for dtype in dtypes:
        for size in sizes:
            problem = problem_of(size, DTYPES[dtype], memory_convolution=not no_memory_convolution)
            measurements = tune(problem, launches, options)
            choices = map(label, (*CANDIDATES, None))
            header = ("kernel", "product", *choices, "winner", "to plain")
            rows = [measurement.row() for measurement in measurements]
            title = f"{size}, {dtype}: milliseconds of a launch"
            click.echo("\n" + Table(title, header, rows, {}).text(markdown))
            # Size by size, so that an interrupted run keeps what it measured.
            if not dry_run:
                stored = {}
                for measurement in measurements:
                    stored |= measurement.winners()
                click.echo(f"stored in {tuning.store(stored, output)}")
            record += [measurement.as_dict() for measurement in measurements]
            if json_path is not None:
                facts = {"device": tuning.device(), "backend": backend, "TF32": tf32_text()}
                json_path.write_text(json.dumps({"facts": facts, "products": record}, indent=2))


if __name__ == "__main__":
    main()

"""The search for the fastest tile of a convolution kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import click
import mlx.core as mx

from benchmarking.sizes import unit_roundoff
from mlx_tlstm.checking.chains import Chain, Problem, label, make_chain, products_of
from mlx_tlstm.checking.timing import Timing, measure
from mlx_tlstm.kernels import tuning
from mlx_tlstm.kernels.tiles import CANDIDATES, Tile
from mlx_tlstm.kernels.trial import relative_error, to_numpy
from mlx_tlstm.kernels.tuning import Product

#: Rounding errors of a sum grow with the root of its terms, which are a few ten thousand.
_SUM = 2.0**-17
#: Roundings of factors, and of a result: a few of their size.
_ROUNDINGS = 4


def sensible(product: Product) -> list[Tile]:
    """The candidates of which half would not cover the product, and the smallest in any case."""
    fitting = [tile for tile in CANDIDATES if tile.fits(product.rows, product.columns)]
    return fitting or [CANDIDATES[-1]]


def check(chain: Chain, plain: Chain, choices: list[Tile | None], product: Product) -> None:
    """Compare each candidate's numbers with plain operations in float32.

    Raises:
        click.ClickException: They differ; nothing is timed or stored on wrong numbers.
    """
    expected = plain.launch(*(array.astype(mx.float32) for array in chain.start))
    limit = _SUM + _ROUNDINGS * unit_roundoff(product.dtype)
    for choice in choices:
        with tuning.forced(choice):
            results = chain.once()
        for got, value in zip(results, expected, strict=True):
            error = relative_error(to_numpy(got), to_numpy(value))
            if not error <= limit:
                raise click.ClickException(
                    f"{product} as {label(choice)} differs from plain operations by "
                    f"{error:.1e}, more than {limit:.1e}: nothing is stored for this size"
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

    def row(self) -> dict[str, str]:
        cells = {
            label(choice): f"{self.timings[choice].median / self.launches:.4f}"
            if choice in self.timings
            else "–"
            for choice in (*CANDIDATES, None)
        }
        product = self.product
        return {
            "kernel": product.kernel,
            "product": f"{product.rows}x{product.columns}x{product.depth}",
            **cells,
            "winner": label(self.winner),
            "to MLX": f"{self.timings[self.winner].ratio(self.timings[None]):.2f}",
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
    products = products_of(problem)
    chains = [make_chain(problem, name) for name in products]
    for chain, product in zip(chains, products.values(), strict=True):
        tiles = sensible(product)
        plain = make_chain(problem, product.kernel, plain=True)
        check(chain, plain, [*tiles, None], product)
        for tile in CANDIDATES:
            if tile not in tiles:
                click.echo(f"{product}: {label(tile)} left out, more than twice as large")
    measurements = []
    for chain, product in zip(chains, products.values(), strict=True):
        choices = [*sensible(product), None]
        runs = {choice: _run(chain, choice, launches) for choice in choices}
        measurements.append(Measurement(product, measure(runs, **options), launches))
    return measurements


def _run(chain: Chain, choice: Tile | None, launches: int) -> Callable[[], None]:
    def run() -> None:
        with tuning.forced(choice):
            chain.run(launches)

    return run

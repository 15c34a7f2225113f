"""Plain operations beside the paper's equations, and kernels beside plain operations."""

from __future__ import annotations

import itertools

import mlx.core as mx

from mlx_tlstm.checking import chains
from mlx_tlstm.checking.chains import Problem
from mlx_tlstm.checking.settings import INPUT_SIZE, on_device
from mlx_tlstm.checking.timing import measure
from mlx_tlstm.kernels import tiles, trial, tuning
from mlx_tlstm.kernels.trial import Configuration, Trial
from mlx_tlstm.layers import TLSTM
from mlx_tlstm.layers.variants import VARIANTS, make_layer
from mlx_tlstm.reference import ReferenceBackend

_LAUNCHES = 10  # of a kernel, timed together
_SUM = 2.0**-17  # rounding of sums of a few ten thousand terms in float32
_ROUNDINGS = 8  # of a product, that a kernel's result may be off by besides


def plain_operations(variant: str) -> float:
    """The largest relative error of a variant's results on the CPU, beside the equations'."""
    with on_device("cpu"):
        layer = make_layer(variant, 3, 5, 3 if VARIANTS[variant].axes == 1 else 2)
        configuration = Configuration.of(layer.cell, trial.examples(layer.hidden_size))
        numbers, plain = Trial.of(configuration), configuration.plain
        equations = plain.on(ReferenceBackend(configuration.geometry, configuration.update))
        found = numbers.results(plain, mx.float32)
        expected = numbers.results(equations, mx.float32, keep="nothing")
    pairs = zip(itertools.chain(*found), itertools.chain(*expected), strict=True)
    return max(itertools.starmap(trial.relative_error, pairs))


def kernel(problem: Problem, name: str, as_product: bool) -> tuple[float, float, dict[str, float]]:
    """A kernel's largest relative error, what is allowed, and times beside plain operations'."""
    geometry = problem.geometry
    sizes = (problem.hidden_size, geometry.tensor_size, geometry.kernel_size)
    layer = TLSTM(INPUT_SIZE, *sizes, norm=problem.norm)
    layer.set_dtype(problem.dtype)
    rounding = trial.measured_rounding(Configuration.of(layer.cell, problem.batch_size))
    tile = None if as_product else _tile(problem, name)
    chain, plain = (chains.make_chain(problem, name, plain) for plain in (False, True))
    with tuning.forced(tile):
        found = chain.once()
        mx.eval(found)
    with mx.stream(mx.cpu):
        expected = chains.make_chain(problem, name, plain=True).once()
        pairs = zip(found, expected, strict=True)
        error = max(trial.relative_error(*map(trial.to_numpy, pair)) for pair in pairs)

    def run() -> None:
        with tuning.forced(tile):
            chain.run(_LAUNCHES)

    runs = {"kernel": run, "plain": lambda: plain.run(_LAUNCHES)}
    product = chains.bare_product(problem, name)
    if product is not None:
        runs["bare product"] = lambda: product.run(_LAUNCHES)
    timings = measure(runs, rounds=3, warmup=1, pause=0.0)
    times = {f"{key} ms": timing.median / _LAUNCHES for key, timing in timings.items()}
    return error, _SUM + _ROUNDINGS * rounding, times


def _tile(problem: Problem, name: str) -> tiles.Tile | None:
    """What layers launch, or would if they did not take MLX's own product."""
    product = chains.products_of(problem).get(name)
    if product is None:
        return None
    return tuning.select(product) or tiles.choose(product.rows, product.columns)

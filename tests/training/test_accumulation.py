"""Parts of a batch one after the other do what the whole batch does."""

from __future__ import annotations

import numpy as np
import pytest
from layer_helpers import peak_bytes
from mlx.utils import tree_flatten

from mlx_tlstm import training
from mlx_tlstm.training.runs import RunFolder


@pytest.mark.parametrize("variant", ["2d-tlstm+cn", "2d-tlstm+ln", "slstm", "3d-trnn"])
@pytest.mark.parametrize(("task", "parts"), [("wikipedia", 2), ("wikipedia", 6), ("mnist", 3)])
def test_step(task, parts, variant, settings):
    """Float32 sums in another order: gradients agree to rounding, relative to the largest.

    Channel normalisation enlarges rounding in its first steps, as it does gradients.
    """
    trainers = []
    for accumulate in (1, parts):
        config = settings(task, batch_size=6, variant=variant, accumulate=accumulate)
        trainers.append(training.Trainer(config))
    whole, divided = trainers
    for _ in range(2):  # the second goes on from the carried state
        reports = [trainer.train_step() for trainer in trainers]
        np.testing.assert_allclose(*reports, rtol=1e-4)
    moments = [dict(tree_flatten(trainer.optimizer.state)) for trainer in trainers]
    for name, expected in moments[0].items():
        expected, found = np.array(expected), np.array(moments[1][name])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    for whole_state, divided_state in zip(whole.carried, divided.carried, strict=True):
        assert divided_state.dtype == whole_state.dtype
        np.testing.assert_allclose(divided_state, whole_state, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype, settings):
    """Summed in float32; the parts' own rounding is all that differs."""
    reports = [
        training.Trainer(
            settings("wikipedia", variant="2d-tlstm", dtype=dtype, accumulate=parts)
        ).train_step()
        for parts in (1, 4)
    ]
    np.testing.assert_allclose(*reports, rtol=0.02)


def test_records(settings, tmp_path):
    for name, parts in (("whole", 1), ("divided", 4)):
        training.fit(settings("wikipedia", accumulate=parts), tmp_path / name)
    whole, divided = (RunFolder.open(tmp_path / n).read_metrics() for n in ("whole", "divided"))
    for first, second in zip(whole, divided, strict=True):
        assert first.keys() == second.keys()
        assert (first["samples"], first["step"]) == (second["samples"], second["step"])
        assert second["bpc"] == pytest.approx(first["bpc"], rel=1e-3)


def test_less_memory(settings):
    peaks = []
    for parts in (1, 8):
        config = settings(
            "mnist", batch_size=48, hidden_size=32, length=49, depth=2, accumulate=parts
        )
        trainer = training.Trainer(config)
        trainer.train_step()
        peaks.append(peak_bytes(trainer.train_step))
    assert peaks[1] < 0.4 * peaks[0]

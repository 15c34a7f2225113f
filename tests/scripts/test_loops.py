"""The benchmark's ways to run an LSTM cell over a sequence."""

import mlx.core as mx
import pytest
from benchmarking import loops

ROUNDS = {"rounds": 1, "warmup": 0}


def test_every_way_at_every_length():
    *_, [table] = loops.loops_table(ROUNDS, lengths=(4, 9), hidden_size=5)
    assert [(row["way"], row["T"]) for row in table.rows] == [
        (way, T) for way in loops.WAYS for T in ("4", "9")
    ]
    for row in table.rows:
        timing = table.timings[f"T={row['T']}"][row["way"]]
        assert row["ms"] == f"{timing.median:.0f}"
        assert row["ms per T"] == f"{timing.median / int(row['T']):.2f}"
        assert timing.peak_bytes > 0


def test_no_figure_of_a_way_that_computes_something_else(monkeypatch):
    class Wrong(loops.Loop):
        def __call__(self, x):
            y, state = super().__call__(mx.tanh(x))
            return y, state

    wrong = {"wrong": lambda lstm, length: Wrong(loops.Cell(lstm))}
    monkeypatch.setattr(loops, "WAYS", loops.WAYS | wrong)
    with pytest.raises(RuntimeError, match="wrong computes something else than loop"):
        list(loops.loops_table(ROUNDS, lengths=(4,), hidden_size=5))

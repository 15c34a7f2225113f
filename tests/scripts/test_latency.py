"""The streaming benchmark, as a user starts it."""

from __future__ import annotations

import json

import latency
import mlx.core as mx
from benchmarking.streams import Stream
from click.testing import CliRunner

SMALL = ["--hidden-size", "5", "--depth", "1", "--depth", "3", "--inputs", "4", "--warmup", "0"]


def test_both_ways_push_every_input(monkeypatch):
    stream = Stream("2d-tlstm", 5, depth=3, batch_size=2)
    outputs = []
    push = stream.session.push

    def counted(x):
        outputs.append(push(x))
        return outputs[-1]

    monkeypatch.setattr(stream.session, "push", counted)
    stream.wait(4)
    stream.flow(4)
    assert [y.shape for y in outputs] == [(2, 65)] * 8
    # A constant input settles, so that these are answers to it and not zeros.
    assert mx.allclose(outputs[-1], outputs[-2], atol=0.1)
    assert mx.any(outputs[-1] != 0)


def test_table(tmp_path):
    out = tmp_path / "figures.json"
    arguments = [*SMALL, "--rounds", "2", "--markdown", "--json", str(out)]
    result = CliRunner().invoke(latency.main, arguments)
    assert result.exit_code == 0, result.output
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in result.output.splitlines()
        if line.startswith(("| 2d", "| slstm"))
    ]
    assert [row[0] for row in rows] == [
        "2d-tlstm+cn, L=1",
        "slstm, L=1",
        "2d-tlstm+cn, L=3",
        "slstm, L=3",
    ]
    timings = json.loads(out.read_text())["timings"]["streaming"]
    assert len(timings) == 8
    for row in rows:
        each = timings[f"{row[0]}, wait"]["median"] / 4
        assert row[1] == f"{each:.3f}"
        delay = 2 if row[0] == "2d-tlstm+cn, L=3" else 0
        assert row[5] == f"{each * (1 + delay):.3f}"
        flow = timings[f"{row[0]}, flow"]["median"]
        assert row[6] == f"{4000 / flow:,.0f}"
    assert [row[3] for row in rows[:2]] == [row[4] for row in rows[1::2]] == ["1.00", "1.00"]


def test_refusals():
    for arguments in (["--depth", "0"], ["--variant", "slstm"], ["--inputs", "0"]):
        assert CliRunner().invoke(latency.main, arguments).exit_code == 2

"""The option --seconds of the commands and scripts that end by the clock."""

import benchmark
import pytest
import tune
from click.testing import CliRunner

from mlx_tlstm.commands.checking import check


@pytest.mark.parametrize("command", [check, benchmark.main, tune.main])
@pytest.mark.parametrize("value", ["nan", "-1", "soon"])
def test_no_number_of_seconds(command, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, ["--seconds", value])
    assert result.exit_code == 2
    assert "Invalid value for '--seconds'" in result.output
    assert value in result.output
    assert not any(tmp_path.iterdir())

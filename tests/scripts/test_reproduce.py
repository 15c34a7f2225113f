"""Redoing the paper's tables and figures, and training the tasks, as a user starts it."""

from __future__ import annotations

import csv
import itertools
import json
import math

import pytest
import reproduce
from click.testing import CliRunner
from experiments import plans, report
from experiments.pages import Block, footnotes, shown_command
from experiments.paper import PAPER_VARIANTS, symbols_of
from experiments.planned import check_runs
from experiments.plans import Request, planned_runs
from experiments.results import read_result, record_origin
from experiments.studies import STUDIES, Study
from experiments.widths import parameter_count
from tiny_tasks import write_run

from mlx_tlstm import VARIANTS, training
from mlx_tlstm.rivals import RIVALS
from mlx_tlstm.tasks import TASKS
from mlx_tlstm.training import memory_prediction
from mlx_tlstm.training.runs import RunFolder


def run(script, *arguments, code=0):
    result = CliRunner().invoke(script.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def pretend(folder, planned, values, split="test", ended=True):
    test = {TASKS[planned.config.task].metric: values[-1]} if ended else None
    write_run(folder / planned.name, planned.config, values, test, split=split)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("scale", plans.SCALES)
@pytest.mark.parametrize("variants", [PAPER_VARIANTS, tuple(VARIANTS)])
def test_no_name_stands_for_two_configurations(variants, scale, tmp_path):
    """Targets share runs, and folders."""
    request = Request(scale, 2, variants=variants)
    runs = {target: planned_runs(target, request) for target in plans.TARGETS}
    check_runs([run for of_target in runs.values() for run in of_target], tmp_path)
    assert all(runs.values())
    assert not list(tmp_path.iterdir())


def test_the_papers_scale():
    request = Request("paper", 1, data={"wikipedia": "/text"})

    def grid(target):
        return {
            (r.config.task, r.config.depth, r.config.hidden_size)
            for r in planned_runs(target, request)
        }

    depths = {"addition": (1, 4, 7, 10), "memorization": (1, 4, 7, 10), "wikipedia": (1, 2, 3, 4)}
    assert grid("figure-4") == {
        (task, depth, size)
        for task, size in (("addition", 400), ("memorization", 100))
        for depth in depths[task]
    }
    sizes = (1120, 901, 522)
    assert grid("figure-3") == {
        ("wikipedia", d, m) for d, m in itertools.product(range(1, 5), sizes)
    }
    both = ("mnist", "pmnist")
    assert grid("figure-5") == {(task, d, 100) for task, d in itertools.product(both, (1, 3, 5))}
    mlstm, rhn = ("wikipedia", 1, 1900), ("wikipedia", 10, 1500)
    assert grid("table-1") == {("wikipedia", 6, 1200), mlstm, rhn}
    assert grid("table-2") == {
        ("addition", 7, 400),
        ("addition", 10, 400),
        ("addition", 18, 400),
    } | {
        ("memorization", 7, 100),
        ("memorization", 10, 100),
        ("memorization", 43, 100),
    }
    of_table_3 = ((3, 100), (5, 100), (1, 100), (1, 128), (9, 50))
    assert grid("table-3") == {(task, *size) for task, size in itertools.product(both, of_table_3)}
    figures = ("figure-3", "figure-4", "figure-5")
    for figure in figures:
        assert {r.config.variant for r in planned_runs(figure, request)} == set(PAPER_VARIANTS)
    configs = {r.config.task: r.config for t in figures for r in planned_runs(t, request)}
    varied = ("variant", "depth", "hidden_size", "seed", "data")
    assert set(configs) == set(TASKS)
    for task, config in configs.items():
        printed = TASKS[task].paper()
        printed = printed.replace(forget_bias=4.0 if "mnist" in task else 1.0)
        same = {name: getattr(config, name) for name in varied}
        assert config == printed.replace(**same)
    assert configs["wikipedia"].data == "/text"
    assert configs["mnist"].data is None


def test_the_same_figure_from_another_start():
    request = Request("laptop", 1)
    usual, other = (planned_runs(f"figure-4{way}", request) for way in ("", "-lag"))
    assert [run.name + "-forgetlag" for run in usual] == [run.name for run in other]
    assert [run.config.replace(forget_bias="lag") for run in usual] == [r.config for r in other]


def test_anothers_network_starts_as_the_figure_says():
    runs = planned_runs("figure-4-lag", Request("laptop", 1, variants=("lstm", "mlstm")))
    assert {run.config.forget_bias for run in runs} == {"lag"}


def test_order_of_a_sweep():
    runs = [r.config for r in planned_runs("figure-4", Request("laptop", 2))]
    places = [(c.seed, c.depth) for c in runs]
    assert places == sorted(places)
    assert [c.variant for c in runs[:7]] == list(PAPER_VARIANTS)


def test_a_table_from_training_to_files(data_options, tmp_path):
    output = run(reproduce, "table-1", "--scale", "smoke", "--out", tmp_path, *data_options)
    assert "wikipedia-3d-tlstm+cn-L2-s0" in output
    text = (tmp_path / "table-1.md").read_text()
    rows = rows_of(tmp_path / "table-1.csv")
    assert list(rows[0])[-5:] == ["paper", "ours, smoke scale", "samples", "time", "run folder"]
    assert [row["paper"] for row in rows] == [
        "1.44",
        "1.42",
        "1.34",
        "1.32",
        "1.27",
        "1.245",
        "1.198",
        "1.264",
    ]
    assert rows[3]["model"] == "HM-LSTM+LN [11]"
    assert rows[3]["paper, # Param."] == "≈35M"
    trained = {"ours": [7], "another's, retrained": [1, 4], "printed only": [0, 2, 3, 5, 6]}
    for kind, places in trained.items():
        assert [n for n, row in enumerate(rows) if row["trained"] == kind] == places
    assert all(not any(list(rows[n].values())[6:]) for n in trained["printed only"])
    assert rows[1]["our size"].startswith("mlstm, chunks of 10 bytes, M=6")
    assert all(rows[n]["run folder"] for n in trained["another's, retrained"])
    ours = rows[-1]
    assert ours["our size"] == "3d-tlstm+cn, chunks of 10 bytes, M=10, L=2, seed 0, N = 100 streams"
    assert ours["run folder"] == "wikipedia-3d-tlstm+cn-L2-s0"
    test = json.loads((tmp_path / ours["run folder"] / "test.json").read_text())
    assert float(ours["ours, smoke scale"]) == pytest.approx(test["bpc"], abs=5e-4)
    assert (ours["samples"], math.isfinite(test["bpc"])) == ("400", True)
    for row in rows:
        assert any(all(cell in line for cell in row.values()) for line in text.splitlines())
    values = json.loads((tmp_path / "table-1.json").read_text())
    assert values["rows"] == rows
    assert [r["config"]["data"] for r in values["runs"]] == ["text"] * 3
    assert str(tmp_path) not in text + json.dumps(values)
    assert "- Trained on " in text
    assert "Written by `python scripts/reproduce.py" in text

    again = run(reproduce, "table-1", "--scale", "smoke", "--out", tmp_path, *data_options)
    assert "3 runs, 3 of which ended before" in again
    assert "1 of 3" not in again
    assert rows_of(tmp_path / "table-1.csv") == rows


def test_a_part_of_a_figure(data_options, tmp_path):
    options = ["figure-4", "--scale", "smoke", "--out", tmp_path]
    picked = ["--only", "memorization-2d-*-L1-*", "--only", "*-slstm-L2-s0"]
    assert "5 runs" in run(reproduce, *options, *picked)
    rows = rows_of(tmp_path / "figure-4.csv")
    assert len(rows) == 28
    ran = [row for row in rows if row["run folder"]]
    assert {(row["task"], row["variant"], row["depth"]) for row in ran} == {
        ("memorization", "2d-tlstm", "1"),
        ("memorization", "2d-tlstm-m", "1"),
        ("memorization", "2d-tlstm-f", "1"),
        ("memorization", "slstm", "2"),
        ("addition", "slstm", "2"),
    }
    assert all(row["our size"] and row["samples"] == "200" for row in ran)
    blank = ("paper", "ours, smoke scale", "samples", "time", "run folder")
    assert all(not row[name] for row in rows if row not in ran for name in blank)
    assert (tmp_path / "figure-4.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (tmp_path / "figure-4.svg").read_text()
    text = (tmp_path / "figure-4.md").read_text()
    title = "Fig. 4: performance of different configurations"
    assert text.startswith(f"![{title}](figure-4.png)")
    assert "### memorization, smoke scale (2 symbols, M=10): best test accuracy (%)" in text
    assert text.count(f"|\n\n[{title}](figure-4.csv): 28 rows.\n\n- ") == 1
    before = (tmp_path / "figure-4.csv").read_text()
    assert "run" not in run(reproduce, *options, "--report").split("\n")[0]
    assert (tmp_path / "figure-4.csv").read_text() == before


def test_nothing_was_run(tmp_path):
    run(reproduce, "all", "--report", "--out", tmp_path)
    for target in plans.TARGETS:
        assert (tmp_path / f"{target}.md").exists()
        assert not (tmp_path / f"{target}.png").exists()
    assert "table-1.csv" not in (tmp_path / "table-1.md").read_text()  # it has nothing else
    rows = rows_of(tmp_path / "table-2.csv")
    assert {row["paper"] for row in rows} == {"51%", ">50%", ">99%"}
    assert not any(row["ours, laptop scale"] for row in rows)


def test_table_2_at_the_papers_scale(tmp_path):
    request = Request("paper", 2)
    runs = {run.name: run for run in planned_runs("table-2", request)}
    solved = runs["memorization-3d-tlstm+cn-L10-s1"]
    pretend(tmp_path, solved, [0.5, 0.995, 0.9, 1.0])
    pretend(tmp_path, runs["addition-3d-tlstm+cn-L7-s0"], [0.25, 0.2], ended=False)
    results = {name: read_result(tmp_path / name) for name in runs}
    table = report.printed_table("table-2", request, results)
    assert table.header == (
        "model",
        "trained",
        "task",
        "paper, # Samp.",
        "our size",
        "> 99 % after",
        "100 % after",
        "paper",
        "ours",
        "samples",
        "time",
        "run folder",
    )
    rows = [(row.pop("model"), row.pop("trained"), *row.values()) for row in table.rows]
    assert {row[1] for row in rows if "tLSTM" in row[0]} == {"ours"}
    rows = [(row[0], *row[2:]) for row in rows]
    cells = {(row[0], row[1], row[3][-6:]): row for row in rows}
    row = cells["3D tLSTM+CN (L=10)", "memorization", "seed 1"]
    assert row[2:] == (
        "54K",
        "3d-tlstm+cn, 20 symbols, M=100, L=10, seed 1",
        "2,000",
        "4,000",
        ">99%",
        "100.00 %",
        "4,000",
        "04:00",
        solved.name,
    )
    row = cells["3D tLSTM+CN (L=7)", "addition", "seed 0"]
    assert row[4:8] == ("", "", ">99%", "25.00 % (test), unfinished")
    assert cells["3D tLSTM+CN (L=7)", "addition", "seed 1"][7:] == ("", "", "", "")
    assert len(table.rows) == 2 * (1 + 2 + 2 * 2)  # of two seeds, but for the stacked LSTM


def test_figure_5_at_the_papers_scale(tmp_path):
    """The text prints one point of each panel."""
    request = Request("paper", 1)
    runs = planned_runs("figure-5", request)
    best = next(run for run in runs if run.name == "mnist-3d-tlstm+cn-L5-s0")
    pretend(tmp_path, best, [0.9, 0.991, 0.98], split="validation")
    results = {run.name: read_result(tmp_path / run.name) for run in runs}
    table = report.figure_table("figure-5", request, results)
    printed = {tuple(row.values())[:3]: row["paper"] for row in table.rows}
    assert {point: value for point, value in printed.items() if value} == {
        ("mnist", "3d-tlstm+cn", "5"): "99.1",
        ("pmnist", "3d-tlstm+cn", "5"): "95.6",
    }
    assert [row["ours"] for row in table.rows if row["run folder"]] == ["99.10 % (validation)"]
    laptop = report.figure_table(
        "figure-5",
        Request("laptop", 1),
        dict.fromkeys(run.name for run in planned_runs("figure-5", Request("laptop", 1))),
    )
    assert not any(row["paper"] for row in laptop.rows)


def test_a_task_that_was_left_out_has_no_rows(tmp_path):
    request = Request("laptop", 1)
    runs = planned_runs("figure-5", request)
    pretend(tmp_path, runs[0], [0.9, 0.991, 0.98], split="validation")
    results = {run.name: read_result(tmp_path / run.name) for run in runs}
    (table,) = report.depth_tables("figure-5", request, results)
    assert table.title.startswith("mnist, ")
    rows = report.figure_table("figure-5", request, results).rows
    assert [row["task"] for row in rows] == ["mnist"] * (len(runs) // 2)


def test_language_models_that_look_ahead_are_marked(tmp_path):
    request = Request("paper", 2)
    runs = planned_runs("figure-3", request)
    for number, run in enumerate(runs):
        pretend(tmp_path, run, [2.0, 1.5 + 0.001 * number], split="validation")
    results = {run.name: read_result(tmp_path / run.name) for run in runs}
    rows = report.figure_table("figure-3", request, results).rows
    marked = {(row["variant"], row["depth"]) for row in rows if "not causal" in row["ours"]}
    assert marked == {("3d-tlstm+ln", depth) for depth in "234"}
    [table] = report.depth_tables("figure-3", request, results)
    by_variant = {row["variant"]: list(row.values())[1:] for row in table.rows}
    assert ["not causal" in cell for cell in by_variant["3d-tlstm+ln"]] == [False, True, True, True]
    assert not any("causal" in cell for cell in by_variant["3d-tlstm+cn"])
    assert by_variant["slstm"][0] == "1.514 (1.500 to 1.528)"  # seed 1's is run number 28
    assert "M=1120, 901, 522" in table.title


def test_figures_over_seeds_take_what_has_ended(tmp_path):
    request = Request("laptop", 3)
    runs = planned_runs("figure-4", request)
    seeds = [run for run in runs if run.name.startswith("addition-slstm-L1-")]
    pretend(tmp_path, seeds[0], [0.5, 1.0])
    pretend(tmp_path, seeds[1], [0.5, 0.75])
    pretend(tmp_path, seeds[2], [0.25], ended=False)
    results = {run.name: read_result(tmp_path / run.name) for run in runs}
    accuracy, samples, *_ = report.depth_tables("figure-4", request, results)
    assert list(accuracy.rows[0].values()) == ["slstm", "87.5 (75.0 to 100.0)", ""]
    assert list(samples.rows[0].values()) == ["slstm", "2,000 (1 of 2 seeds)", ""]
    assert list(samples.rows[1].values()) == ["2d-tlstm", "", ""]


def test_departures_are_named(tmp_path):
    run(reproduce, "figure-3", "--report", "--out", tmp_path)
    text = (tmp_path / "figure-3.md").read_text()
    assert "\n- wikipedia is trained with hidden size 64, batch size 32, learning rate" in text
    assert "where the paper fixes the parameter count" in text
    rows = rows_of(tmp_path / "figure-3.csv")
    assert {row["our size"] for row in rows} == {"chunks of 50 bytes, M=64 in all variants"}
    for target in plans.TARGETS:
        lines = plans.departures(target, Request("paper"))
        assert len(lines) == (2 if target == "figure-4-lag" else 0)
    assert lines == []
    changed = plans.departures("figure-4-lag", Request("laptop"))[1]
    assert changed == (
        "memorization is trained with length 10, samples 40,000, forget bias lag in place of the "
        "paper's."
    )
    [mnist, _] = plans.departures("figure-5", Request("laptop"))
    assert mnist.startswith("mnist is trained with hidden size 50, length 28, epochs 1")
    assert "parameter count" not in mnist
    # Of tasks that the tables leave out nothing is said.
    pretend(tmp_path, planned_runs("figure-5", Request("laptop"))[0], [0.5])
    run(reproduce, "figure-5", "--report", "--out", tmp_path)
    notes = [n for n in (tmp_path / "figure-5.md").read_text().splitlines() if n[:2] == "- "]
    assert [note for note in notes if "is trained with" in note] == ["- " + mnist]


def test_addition_over_the_number_of_digits():
    runs = planned_runs("addition-digits", Request("laptop", 1))
    found = [(run.config.length, run.config.forget_bias) for run in runs]
    assert found == [
        *itertools.product((1, 2, 3, 4), (1.0,)),
        *itertools.product((1, 2, 3, 4), ("lag",)),
    ]
    texts = ["1 digit, M=200", *(f"{number} digits, M=200" for number in (2, 3, 4))]
    assert [report.size_text(run.config) for run in runs] == 2 * texts


def test_anothers_network_in_its_row():
    """Trained with its own paper's clipping and, below the paper's scale, as large as ours."""
    request = Request("laptop")
    runs = plans.table_runs("table-2", request)
    stacked = runs["addition", "Stacked LSTM [21]"]
    assert [r.name for r in stacked] == [
        "addition-stacked-lstm-L4-s0-hidden_size107",
        "addition-stacked-lstm-L4-s1-hidden_size107",
    ]
    # Its paper's sizes are not known.
    assert ("addition", "Stacked LSTM [21]") not in plans.table_runs("table-2", Request("paper"))
    ours = {run.name for run in planned_runs("figure-4", request)}
    assert ours >= {r.name for rows in runs.values() for r in rows if "tlstm" in r.name}
    for table in ("table-1", "table-2", "table-3"):
        runs = plans.table_runs(table, request)
        for (task, _), [run, *_] in runs.items():
            own = VARIANTS[run.config.variant].settings
            assert {name: getattr(run.config, name) for name in own} == dict(own)
            counts = [count_of(one.config) for (of, _), [one, *_] in runs.items() if of == task]
            assert max(counts) < 1.06 * min(counts)


def count_of(config):
    symbols = symbols_of(config.task, config.length)
    return parameter_count(config.variant, symbols, config.hidden_size, config.depth)


def test_others_networks_beside_ours():
    for task in ("memorization", "addition", "mnist"):
        runs = planned_runs(f"rivals-{task}", Request("laptop"))
        assert {run.config.variant for run in runs} == {
            *RIVALS,
            *("3d-tlstm+cn", "2d-tlstm+cn", "slstm"),
        }
        assert {run.config.seed for run in runs} == {0, 1, 2}
        assert len({(run.config.task, run.config.length, run.config.samples) for run in runs}) == 1
        assert runs[0].config.task == task
        counts = {count_of(run.config) for run in runs}
        assert max(counts) < 1.06 * min(counts)
        for run in runs:
            if task != "mnist" and VARIANTS[run.config.variant].has_forget_gate:
                assert run.config.forget_bias == "lag"


@pytest.mark.parametrize("target", ["axes-wikipedia", "axes-mnist"])
def test_one_axis_beside_two(target):
    """As in Fig. 3 and 5: depth, data and budget are one, and the parameters alike."""
    runs = [run.config for run in planned_runs(target, Request("laptop", 1))]
    assert [config.variant for config in runs] == ["3d-tlstm+cn", "2d-tlstm+cn"]
    large, small = map(count_of, runs)
    assert 0.98 * large < small <= large
    one = {config.replace(variant=runs[0].variant, hidden_size=1) for config in runs}
    assert len(one) == 1


def test_other_variants_in_a_figure(tmp_path):
    options = ["figure-4", "--scale", "smoke", "--out", tmp_path, "--only", "memorization-*-L1-*"]
    run(reproduce, *options, "--variant", "grid-lstm", "--variant", "2d-tlstm+cn")
    rows = rows_of(tmp_path / "figure-4.csv")
    assert {row["variant"] for row in rows} == {"grid-lstm", "2d-tlstm+cn"}
    assert sum(bool(row["run folder"]) for row in rows) == 2
    assert "grid-lstm" in (tmp_path / "figure-4.md").read_text()
    assert "Invalid value for '--variant'" in run(reproduce, *options, "--variant", "gru", code=2)


@pytest.mark.parametrize("target", plans.FIGURES)
@pytest.mark.parametrize("scale", plans.SCALES)
def test_every_network_in_every_figure(scale, target):
    """Others', and ours without a printed M, as large as the paper's best, as deep as they can."""
    request = Request(scale, 1, variants=(*PAPER_VARIANTS[-1:], "3d-trnn", *RIVALS))
    runs = [run.config for run in planned_runs(target, request)]
    for task in plans.FIGURES[target].tasks:
        sizes = {(c.variant, c.depth): count_of(c) for c in runs if c.task == task}
        depths = plans.SIZES[scale][task].depths
        for variant in request.variants:
            if "depth" in VARIANTS[variant].settings:
                [(own, count)] = [(d, n) for (v, d), n in sizes.items() if v == variant]
                assert own == 1
                pairs = [(count, sizes["3d-tlstm+cn", max(depths)])]
            else:
                pairs = [(sizes[variant, L], sizes["3d-tlstm+cn", L]) for L in depths]
            printed = plans.SIZES[scale][task].hidden_size is not None
            if variant in RIVALS or not printed:
                assert all(0.85 * ours < count <= ours for count, ours in pairs), (variant, pairs)


def test_a_network_of_one_layer_in_a_figure(tmp_path):
    options = ["figure-4", "--scale", "smoke", "--out", tmp_path, "--only", "memorization-*"]
    run(reproduce, *options, "--variant", "irnn", "--variant", "3d-tlstm")
    rows = rows_of(tmp_path / "figure-4.csv")
    trained = [(row["variant"], row["depth"]) for row in rows if row["run folder"]]
    assert trained == [("irnn", "1"), ("3d-tlstm", "1"), ("3d-tlstm", "2")]


def test_starts(tmp_path):
    request = Request("laptop", 2, 3)
    runs = planned_runs("starts", request)
    ways = 3 * 3 - 1 + 3 * 2  # the best is in two comparisons
    assert [run.config.seed for run in runs] == [3] * ways + [4] * ways
    [lag, _] = [run for run in runs if run.name.endswith("-forgetlag")]
    for run_ in runs:
        pretend(tmp_path, run_, [0.5, 0.995, 1.0] if run_ is lag else [0.5, 0.9])
    options = ["--seeds", 2, "--first-seed", 3, "--report", "--out", tmp_path]
    assert "forget_bias 4, beta2 0.99, clip_norm 0" in run(reproduce, "starts", *options)
    rows = rows_of(tmp_path / "starts.csv")
    assert [row["way"] for row in rows[:6:2]] == [
        "the paper's",
        "forget_bias lag",
        "forget_bias 4",
    ]
    assert [row["seed"] for row in rows[:4]] == ["3", "4"] * 2
    assert rows[0]["best evaluation"] == "90.00 % (test)"
    assert "paper" not in rows[0]
    assert len(rows) == len(runs)  # each once, though panels share some
    lines = (tmp_path / "starts.md").read_text().splitlines()
    split = [[cell.strip() for cell in line.split("|")] for line in lines]
    cells = next(row for row in split if "forget_bias lag" in row)
    samples = ["> 30,000 (2,000, > 30,000)", "> 30,000 (3,000, > 30,000)"]
    assert cells[2:7] == ["forget_bias lag", "2 of 2", *samples, "100.00 %, 90.00 %"]
    assert (tmp_path / "starts.png").exists()


def test_a_study_shows_which_of_its_runs_are_not_settled(tmp_path):
    runs = [run for run in planned_runs("starts", Request("laptop")) if run.name.endswith("lag")]
    pretend(tmp_path, runs[0], [0.5, 0.995])
    pretend(tmp_path, runs[2], [0.5, 0.9])
    run(reproduce, "starts", "--report", "--out", tmp_path)
    lines = (tmp_path / "starts.md").read_text().splitlines()
    split = [[cell.strip() for cell in line.split("|")] for line in lines]
    cells = next(row for row in split if "forget_bias lag" in row)
    samples = ["> 30,000 (2,000, –, > 30,000)", "> 30,000 (> 30,000, –, > 30,000)"]
    assert cells[2:7] == ["forget_bias lag", "2 of 3", *samples, "99.50 %, –, 90.00 %"]
    assert [row["seed"] for row in rows_of(tmp_path / "starts.csv")] == ["0", "2"]


def test_where_runs_were_trained(tmp_path):
    machine = {"processor": "P", "cores": 2, "device": "cpu (P)", "system": "S", "python": "3"}
    machine |= {"mlx": "1", "blas": "B", "commit": "abc"}
    runs = planned_runs("starts", Request("laptop", 1))[:4]
    for run_ in runs:
        pretend(tmp_path, run_, [0.5])
    record_origin(tmp_path / runs[0].name, machine, "")
    record_origin(tmp_path / runs[0].name, machine, "")
    record_origin(tmp_path / runs[1].name, machine, "")
    record_origin(tmp_path / runs[1].name, {**machine, "commit": "def"}, "")
    record_origin(tmp_path / runs[2].name, {**machine, "cores": 8}, "")
    lines = footnotes([read_result(tmp_path / run_.name) for run_ in runs] + [None], "the command")
    assert lines[0] == "Trained on P, 2 cores, MLX 1 on cpu (P), B, Python 3, S; commit abc, def."
    assert lines[1].startswith("Trained on P, 8 cores")
    assert lines[2] == "Where 1 of the 4 runs were trained was not recorded."
    assert lines[3].startswith("Written by `the command` at commit ")
    assert len(lines) == 4


def test_commands_are_published_without_folders():
    arguments = ["scripts/x.py", "all", "--out", "/home/a b/r", "--into=/b/c.md", "--only", "a-*"]
    assert shown_command(arguments) == "python scripts/x.py all --out r --into=c.md --only 'a-*'"


def test_into_a_file(tmp_path):
    runs = planned_runs("symbols-20", Request("laptop", 2))
    for run_ in runs:
        pretend(tmp_path / "out", run_, [0.5, 0.9])
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    before, after = (
        "# Results\n\n<!-- begin symbols-20 laptop -->",
        "<!-- end symbols-20 laptop -->\n\nEnd.\n",
    )
    page.write_text(f"{before}\nformer\n{after}")
    for _ in range(2):
        run(reproduce, "symbols-20", "--report", "--out", tmp_path / "out", "--into", page)
        text = page.read_text()
        assert text.startswith(before + "\n\n![")
        assert text.endswith("\n\n" + after)
        assert "former" not in text
        title = "### 20 symbols to memorize, the paper's size, laptop scale"
        assert text.count(title) == 1
        assert str(tmp_path) not in text
    for ending in ("png", "csv"):
        copy = page.with_name(f"symbols-20-laptop.{ending}")
        assert f"]({copy.name})" in text
        assert copy.read_bytes() == (tmp_path / "out" / f"symbols-20.{ending}").read_bytes()


def test_a_table_alone_goes_whole_into_a_file(tmp_path):
    page = tmp_path / "results.md"
    page.write_text("<!-- begin table-1 laptop -->\n<!-- end table-1 laptop -->\n")
    run(reproduce, "table-1", "--report", "--out", tmp_path / "out", "--into", page)
    assert "| model" in page.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "results.md"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be an existing file"),
        ("", "must be a file with one '<!-- begin starts laptop -->' and then one"),
        ("<!-- begin starts laptop -->", "and then one '<!-- end starts laptop -->'"),
        ("<!-- begin starts laptop -->" * 2 + "<!-- end starts laptop -->", "with one '<!-- begin"),
        ("<!-- end starts laptop --><!-- begin starts laptop -->", "and then one '<!-- end"),
    ],
)
def test_pages_without_a_place(tmp_path, text, message):
    page = tmp_path / "page.md"
    if text is not None:
        page.write_text(text)
    with pytest.raises(ValueError, match="'into'"):
        Block(page, "starts laptop")
    out = tmp_path / "out"
    assert message in run(reproduce, "starts", "--out", out, "--into", page, code=2)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure-6"], "'figure-6' is not one of"),
        (["all", "--scale", "huge"], "'huge' is not one of"),
        (["all", "--seeds", "0"], "0 is not in the range"),
        (["all", "--mnist-data", "/no/such/folder"], "does not exist"),
        (["starts", "--only", "mnist-*"], "'only' must be the name of a planned run, such as"),
    ],
)
def test_refusals(tmp_path, arguments, message):
    out = tmp_path / "out"
    assert message in run(reproduce, *arguments, "--out", out, code=2)
    assert not out.exists()


@pytest.mark.parametrize("report", [[], ["--report"]])
def test_runs_of_another_size_are_refused(tmp_path, report):
    planned = planned_runs("starts", Request("laptop", 1))[0]
    RunFolder.create(tmp_path / planned.name, planned.config.replace(hidden_size=51))
    output = run(reproduce, "starts", "--out", tmp_path, *report, code=2)
    assert f"hidden_size 51 in place of {planned.config.hidden_size}" in " ".join(output.split())
    assert len(list(tmp_path.iterdir())) == 1


def test_data_that_does_not_do(tmp_path):
    """It is found before the other targets are trained, and asked for no more than need be."""
    (tmp_path / "text").write_text("too short")
    out = tmp_path / "out"
    arguments = ["all", "--scale", "smoke", "--wikipedia-data", tmp_path / "text", "--out", out]
    output = run(reproduce, *arguments, "--only", "wikipedia-*", "--only", "addition-*", code=2)
    assert "[Wikipedia] 'data' must hold" in output
    assert not out.exists()
    run(reproduce, *arguments, "--only", "addition-slstm-L1-*")


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_prediction, "limit", lambda: 1 << 20)
    output = run(reproduce, "starts", "--scale", "paper", "--out", tmp_path / "out", code=2)
    assert "a training step must fit into the 1 MiB" in output
    assert not (tmp_path / "out").exists()


def test_tasks(data_options, tmp_path):
    options = ["tasks", "--scale", "smoke", "--out", tmp_path, "--seeds", 1, "--first-seed", 3]
    picked = ["--only", "mnist-*", "--only", "memorization-*", "--device", "cpu"]
    output = run(reproduce, *options, *picked, "--mnist-data", data_options[3])
    assert "2 runs" in output
    rows = rows_of(tmp_path / "tasks.csv")
    assert [row["task"] for row in rows] == list(TASKS)
    [memorization, mnist] = [row for row in rows if row["run folder"]]
    assert memorization["run folder"] == "memorization-3d-tlstm+cn-L2-s3-forget2"
    assert mnist["run folder"] == "mnist-2d-tlstm+cn-L2-s3"
    assert memorization["samples"] == "200"
    assert memorization["network"] == "3d-tlstm+cn, L=2, 2 symbols, M=10"
    assert mnist["best"].endswith("% (validation)")
    assert mnist["test"].endswith(" %")
    assert (tmp_path / "tasks.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "tasks.json").read_text())["rows"] == rows
    again = run(reproduce, *options, *picked, "--mnist-data", data_options[3])
    assert "2 of which ended before" in again


def test_settings_of_a_task():
    def config(scale, task, **options):
        runs = planned_runs("tasks", Request(scale, **options))
        return next(run.config for run in runs if run.config.task == task)

    wikipedia = TASKS["wikipedia"]
    assert config("laptop", "wikipedia") == wikipedia.quick()
    own = config("paper", "wikipedia", first_seed=2, data={"wikipedia": "/t"})
    assert own == wikipedia.paper().replace(seed=2, data="/t")


@pytest.mark.parametrize("scale", plans.SCALES)
def test_a_sixth_task(monkeypatch, scale):
    """It needs no line here; a line of SIZES or a figure's is for those that want one."""

    class Recall(TASKS["memorization"]):
        name = "recall"

        @classmethod
        def quick(cls):
            return super().quick().replace(task="recall")

        @classmethod
        def paper(cls):
            return super().paper().replace(task="recall")

    monkeypatch.setitem(TASKS, "recall", Recall)
    request = Request(scale)
    [planned] = [run for run in planned_runs("tasks", request) if run.config.task == "recall"]
    results = dict.fromkeys(run.name for run in planned_runs("tasks", request))
    [*_, row] = report.task_table(request, results).rows
    assert (row["task"], row["run folder"]) == ("recall", "")
    assert f"length {planned.config.length}, M={planned.config.hidden_size}" in row["network"]


def test_another_study(monkeypatch, tmp_path):
    """A line of STUDIES is all that it takes, whatever its task."""
    ways = {"batches": ({}, {"batch_size": 32})}
    sizes = {scale: {"variant": "slstm", "depth": 2} for scale in plans.SCALES}
    monkeypatch.setitem(STUDIES, "batch", Study("Batches", "wikipedia", sizes, ways, 1))
    request = Request("laptop", data={"wikipedia": "/text"})
    runs = planned_runs("batch", request)
    assert [run.config.data for run in runs] == ["/text"] * 2
    pretend(tmp_path, runs[1], [2.5, 2.0], split="validation")
    summary, every = report.target_tables(
        "batch", request, {run.name: read_result(tmp_path / run.name) for run in runs}
    )
    assert [row["best evaluation"] for row in summary.rows] == ["", "2.000"]
    assert [row["run folder"] for row in every.rows] == [runs[1].name]
    assert runs[1].name == "batch-slstm-L2-s0-batch_size32"


def test_where_layers_compute(tmp_path):
    """A stacked LSTM has plain operations only, whatever the others shall run."""
    options = ["figure-4", "--scale", "smoke", "--out", tmp_path / "out"]
    options += ["--only", "addition-slstm-L1-*", "--only", "addition-2d-tlstm-L1-*"]
    output = run(reproduce, *options, "--backend", "metal", code=2)
    assert "Invalid value for '--backend'" in output
    assert not (tmp_path / "out").exists()
    asked = []
    build = training.trainer.build_model

    def built(config, task, backend=None):
        asked.append((config.variant, backend))
        return build(config, task, backend)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.trainer, "build_model", built)
        run(reproduce, *options, "--device", "cpu", "--backend", "reference")
    assert dict(asked) == {"2d-tlstm": "reference", "slstm": None}

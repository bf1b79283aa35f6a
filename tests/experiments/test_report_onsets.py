"""When each sets in, by variant: steps known beforehand, their order, and silence where nothing was logged."""

import csv

from synthetic_runs import write_run

from experiments.report import build
from experiments.report.comparison import load
from experiments.report.onsets import onset_lines, orders

SINK, DRAIN, MASSIVE = (f"outliers/{name}" for name in ("sink_rate@0.3", "value_drain", "top1_to_median"))
LONG = {"steps": 500, "max_steps": 500, "probes": False}


def jump(after, start=0.1, end=0.9):
    """Half-way at `after` + 25, as it is logged every 50 steps."""
    return lambda step: end if step > after else start


def test_steps_bounds_and_order(tmp_path):
    for seed in range(3):
        # The drain follows the sink in every seed of softmax; the other variant's third seed turns them round.
        ours = {SINK: jump(100 + 50 * seed), DRAIN: jump(350, 1.0, 0.2), MASSIVE: lambda step: 5.0}
        theirs = ours | {DRAIN: jump(0, 1.0, 0.2)} if seed == 2 else ours
        write_run(tmp_path, "softmax", seed, logged=ours, **LONG)
        write_run(tmp_path, "sigmoid", seed, logged=theirs, **LONG)
    path = build(tmp_path)
    (comparison,) = load(tmp_path)
    sink, massive, drain = onset_lines(comparison)
    assert [line.id for line in (sink, massive, drain)] == [
        "onset/sink_rate@0.3", "onset/top1_to_median", "onset/value_drain",
    ]  # fmt: skip
    cell = sink.cells["softmax"]
    assert cell.values == (125.0, 175.0, 225.0)
    assert cell.span == (100.0, 250.0)
    assert cell.note == "from 0.100 to 0.900"
    assert drain.cells["sigmoid"].values == (375.0, 375.0, 25.0)
    assert massive.cells["softmax"].values == ()
    assert massive.cells["softmax"].note == "none in 3 of 3 seeds"
    assert orders(comparison) == [
        "softmax: sink rate before value norm, first key over the others, in all 3 seeds.",
        "sigmoid: the probes tell no order that holds in every seed.",
    ]
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = {(row["variant"], row["measure"]): row for row in csv.DictReader(file)}
    row = rows["softmax", "onset/sink_rate@0.3"]
    assert (row["mean"], row["standard_deviation"], row["seeds"]) == ("175.0", "50.0", "3")
    assert (row["earliest"], row["latest"]) == ("100.0", "250.0")
    assert rows["softmax", "onset/top1_to_median"]["mean"] == ""
    page = path.read_text(encoding="utf-8").partition("When each sets in")[2].partition("<h3>Curves")[0]
    for said in ("175 ± 50", "between 100 and 250", "none in 3 of 3 seeds", orders(comparison)[0]):
        assert said in page


def test_few_seeds_and_unfinished_runs_are_said_to_be_so(tmp_path):
    logged = {SINK: jump(100), DRAIN: jump(350, 1.0, 0.2)}
    write_run(tmp_path, "softmax", 0, logged=logged, **LONG)
    write_run(tmp_path, "sigmoid", 0, logged=logged, **LONG | {"steps": 400, "state": "running"})
    (comparison,) = load(tmp_path)
    assert orders(comparison)[0].endswith("in its one seed (fewer than 3 seeds: another may differ).")
    (sink, _) = onset_lines(comparison)
    assert sink.cells["sigmoid"].note == "unfinished: step 400; from 0.100 to 0.900"


def test_a_sink_that_goes_does_not_set_in(tmp_path):
    for seed in range(3):
        rises = seed == 2
        logged = {SINK: jump(100) if rises else jump(100, 0.9, 0.1), DRAIN: jump(350, 1.0, 0.2)}
        write_run(tmp_path, "softmax", seed, logged=logged, **LONG)
    (comparison,) = load(tmp_path)
    (sink, drain) = onset_lines(comparison)
    assert sink.cells["softmax"].values == (125.0,)
    assert sink.cells["softmax"].note == (
        "from 0.100 to 0.900; moves away from outliers in 2 of 3 seeds, from 0.900 to 0.100"
    )
    assert len(drain.cells["softmax"].values) == 3
    assert orders(comparison) == []  # one curve alone sets in in every seed


def test_a_sink_that_comes_and_goes_is_said_to_and_has_no_step(tmp_path):
    def passing(step):
        return 0.9 if 100 < step <= 300 else 0.1

    for seed in range(3):
        logged = {SINK: passing if seed else jump(100), DRAIN: jump(350, 1.0, 0.2)}
        write_run(tmp_path, "softmax", seed, logged=logged, **LONG)
    path = build(tmp_path)
    (comparison,) = load(tmp_path)
    (sink, _) = onset_lines(comparison)
    note = "from 0.100 to 0.900; comes and goes in 2 of 3 seeds, from 0.100 to 0.900, back at step 325"
    assert (sink.cells["softmax"].values, sink.cells["softmax"].note) == ((125.0,), note)
    assert note in path.read_text(encoding="utf-8")
    assert orders(comparison) == []
    with (tmp_path / "results.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["measure"] == "onset/sink_rate@0.3")
    assert (row["mean"], row["seeds"], row["note"]) == ("125.0", "1", note)


def test_without_curves_there_is_no_table(tmp_path):
    write_run(tmp_path, "softmax", 0, probes=False)
    path = build(tmp_path)
    assert onset_lines(load(tmp_path)[0]) == []
    assert "When each sets in" not in path.read_text(encoding="utf-8")

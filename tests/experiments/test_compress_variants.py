"""`train.py compress` on a comparison's folder: real runs once, then verdicts on numbers known beforehand."""

import csv
import math
import os
import shutil

import pyarrow.parquet as pq
import pytest
from synthetic_runs import write_run

import train
from experiments.compress.one import Options
from experiments.compress.several import left_out
from experiments.compress.side_by_side import MAIN, side_by_side
from experiments.compress.variants_page import write
from experiments.report.assess import DIFFERS, NO_DIFFERENCE, NOT_ASSESSABLE
from experiments.report.comparison import load
from outliers.compression.recipe import SETTINGS, null
from outliers.compression.study import FULL

CHEAP = ("--sequences", "5", "--length", "16")


def test_runs_are_compressed_once_and_shown_side_by_side(tiny_runs, tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    shutil.copytree(tiny_runs, runs)
    argv = ["compress", str(runs), "--out", str(out), *CHEAP]
    assert train.main(argv) == 0
    printed = capsys.readouterr()
    assert printed.out == f"compression: {out / 'compression.html'}\n"
    assert "left out: softmax seed=1, stopped at step 3 of 6" in printed.err
    kept = {label: out / label / "seed=0" / "compression.parquet" for label in ("softmax", "sink_logit")}
    with (out / "compression.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["variant"], row["measure"]): row for row in csv.DictReader(file)}
    for label, path in kept.items():
        for row in pq.read_table(path).to_pylist()[1:]:
            assert float(rows[label, f"{row['setting']}/gap"]["mean"]) == row["gap"]
            if row["null"]:
                assert float(rows[label, f"{row['setting']}/excess"]["mean"]) == row["excess"]
    shown = rows["sink_logit", "w8a8 absmax/gap"]
    assert (shown["verdict"], shown["pairs"]) == (NOT_ASSESSABLE, "1")
    assert shown["null_kind"] == "w8a8 absmax, Gaussian"
    page = (out / "compression.html").read_text(encoding="utf-8")
    for said in (
        "Left out: softmax seed=1, stopped at step 3 of 6.", "validation set, 4 sequences of 16 tokens",
        "fewer than 3 seeds (1 shared)",
    ):  # fmt: skip
        assert said in page
    assert (out / "figures" / "main-settings.png").is_file()

    # Again: nothing is done but the page. Another checkpoint: that run alone. Other options: all.
    # The validation set is the text where none is given.
    before = {label: path.stat().st_mtime_ns for label, path in kept.items()}
    assert train.main([*argv, "--text", "validation"]) == 0
    assert "2 of 2 runs are compressed already" in capsys.readouterr().err
    assert {label: path.stat().st_mtime_ns for label, path in kept.items()} == before
    os.utime(runs / "softmax" / "seed=0" / "checkpoints" / "last.ckpt")
    assert train.main(argv) == 0
    printed = capsys.readouterr().err
    assert "1 of 2 runs are compressed already" in printed
    assert "compressing: 0 of " in printed
    assert "now softmax seed=0, full precision" in printed
    after = {label: path.stat().st_mtime_ns for label, path in kept.items()}
    assert [after[label] > before[label] for label in kept] == [True, False]

    assert train.main([*argv, "--length", "8"]) == 0
    assert "compressed already" not in capsys.readouterr().err
    assert {pq.read_table(path)["length"][0].as_py() for path in kept.values()} == {8}
    assert "4 sequences of 8 tokens" in (out / "compression.html").read_text(encoding="utf-8")
    assert train.main(argv) == 0
    capsys.readouterr()

    # A slip loses nothing. What another command has put in a result's place, or what is cut off, is done again.
    assert train.main([*argv[:-1], "17"]) == 2
    assert train.main(argv) == 0
    assert "2 of 2 runs are compressed already" in capsys.readouterr().err
    other = ["compress", str(runs / "softmax" / "seed=0"), "--out", str(kept["softmax"].parent)]
    assert train.main([*other, "--sequences", "2", "--length", "8"]) == 0
    kept["sink_logit"].write_bytes(kept["sink_logit"].read_bytes()[:-9])
    page = (out / "compression.csv").read_bytes()
    capsys.readouterr()
    assert train.main(argv) == 0
    assert "compressed already" not in capsys.readouterr().err
    assert (out / "compression.csv").read_bytes() == page


def test_a_run_that_cannot_be_compressed_stops_no_other(tiny_runs, tmp_path, capsys):
    """Two comparisons of one name; in each one run is finished and has no whole checkpoint."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    for study in ("one", "two"):
        shutil.copytree(tiny_runs, runs / study / "text")
        shutil.rmtree(runs / study / "text" / "softmax" / "seed=1")
    missing = runs / "one" / "text" / "softmax" / "seed=0"
    shutil.rmtree(missing / "checkpoints")
    damaged = runs / "two" / "text" / "sink_logit" / "seed=0" / "checkpoints" / "last.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    argv = ["compress", str(runs), "--out", str(out), *CHEAP]
    assert train.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == f"compression: {out / 'compression.html'}\n"
    last = printed.err.splitlines()[-1]
    assert last.startswith("error: not compressed, the page shows the others: one/text: softmax seed=0: ")
    assert f"{missing} is finished and has no checkpoints/last.ckpt" in last
    assert f"two/text: sink_logit seed=0: checkpoint {damaged} is damaged" in last
    page = (out / "compression.html").read_text(encoding="utf-8")
    assert f"Left out: one/text: softmax seed=0: {missing} is finished" in page
    assert f"{damaged} is damaged" in page
    done = {str(path.relative_to(out).parent) for path in out.rglob("compression.parquet")}
    assert done == {"one/text/sink_logit/seed=0", "two/text/softmax/seed=0"}
    with (out / "compression.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["comparison"], row["variant"]): row for row in csv.DictReader(file) if row["mean"]}
    assert set(rows) == {("one/text", "sink_logit"), ("two/text", "softmax")}
    # What is mended is done, and nothing else.
    shutil.copytree(tiny_runs / "softmax" / "seed=0" / "checkpoints", missing / "checkpoints")
    shutil.copyfile(tiny_runs / "sink_logit" / "seed=0" / "checkpoints" / "last.ckpt", damaged)
    assert train.main(argv) == 0
    assert "2 of 4 runs are compressed already" in capsys.readouterr().err
    assert "Left out" not in (out / "compression.html").read_text(encoding="utf-8")


def test_what_is_wrong_is_one_line(tiny_runs, tmp_path, capsys):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(tiny_runs / "softmax" / "seed=1", unfinished / "softmax" / "seed=1")
    bare = tmp_path / "bare"
    shutil.copytree(tiny_runs / "softmax" / "seed=0", bare / "softmax" / "seed=0")
    shutil.rmtree(bare / "softmax" / "seed=0" / "checkpoints")
    (tmp_path / "empty").mkdir()
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("softmax", "sink_logit"):
        (out / name).write_text("in the way")
    in_the_way = f"2 finished runs could be compressed; softmax seed=0: --out {out / 'softmax' / 'seed=0'} is a file"
    for folder, said, more in (
        (tiny_runs, in_the_way, ()),
        (tiny_runs, "longer than the 16 positions", ("--length", "17")),
        (tiny_runs, "text none.txt: No such file", ("--text", "none.txt")),
        (tmp_path / "hub", f"(hf:{tmp_path / 'hub'} for Hugging Face's)", ()),
        (unfinished, "has no finished run to compress: softmax seed=1, stopped at step 3 of 6", ()),
        (bare, "is finished and has no checkpoints/last.ckpt", ()),
        (tmp_path / "empty", "contains no run", ()),
    ):
        assert train.main(["compress", str(folder), "--out", str(out), *CHEAP, *more]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len([line for line in error.splitlines() if not line.startswith(("left out", "compressing"))]) == 1
    assert not (out / "compression.html").exists()


def rows_of(gap, null_gap=0.1):
    """What one run's parquet holds, the same for every setting."""
    found = {FULL: {"nats": 2.0, "sequences": 4, "length": 16}}
    for setting in SETTINGS:
        own = null(setting)
        found[setting.name] = {
            "gap": gap, "null": own.name if own else "", "null_gap": null_gap if own else math.nan,
            "excess": gap - null_gap if own else math.nan,
        }  # fmt: skip
    return found


def two(tmp_path, softmax, other, **changes):
    """Side by side of two variants, their gaps given by seed."""
    for seed in range(len(softmax)):
        write_run(tmp_path, "softmax", seed, probes=False)
        write_run(tmp_path, "sigmoid", seed, probes=False, **changes)
    (comparison,) = load(tmp_path)
    rows = {label: dict(enumerate(map(rows_of, gaps))) for label, gaps in (("softmax", softmax), ("sigmoid", other))}
    return comparison, rows, side_by_side(comparison, rows)


def test_a_large_difference_of_gaps_is_one_where_the_baseline_exceeds_its_null(tmp_path):
    comparison, rows, found = two(tmp_path, (1.0, 1.01, 1.02), (0.3, 0.32, 0.31))
    main = found.verdicts[: len(MAIN)]
    assert {verdict.measure.title for verdict in main} == set(MAIN)
    assert {verdict.word for verdict in main} == {DIFFERS}
    # Paired: −0.7, −0.69, −0.71: t = 0.7 / (0.01 / √3) = 121.2; p = 1 − t / √(2 + t²); six comparisons.
    t = 0.7 / (0.01 / math.sqrt(3))
    assert main[0].adjusted_p == pytest.approx(6 * (1 - t / math.sqrt(2 + t * t)))
    assert main[0].difference.mean == pytest.approx(-0.7)
    # The others are a family of their own, one of them without a null.
    words = {verdict.measure.title: verdict for verdict in found.verdicts}
    assert "w8a8 qualcomm" not in found.excesses
    assert found.gaps["w8a8 qualcomm"].null is None
    rest = len(SETTINGS) - len(MAIN)
    assert words["w8 zero-point per tensor"].adjusted_p == pytest.approx(rest / 6 * main[0].adjusted_p)
    excess = found.excesses["w4a4 absmax"].cells["sigmoid"]
    assert excess.mean == pytest.approx(0.21)
    assert excess.difference.mean == pytest.approx(-0.7)
    page = write(tmp_path / "out", [(comparison, rows)], Options(None, 5, None, "float32"), []).read_text("utf-8")
    assert "w8a8 absmax: sigmoid lower by 0.700 [−0.725, −0.675]." in page


@pytest.mark.parametrize(
    ("softmax", "changes", "reason"),
    [
        ((0.05, 1.0, 1.0), {}, "softmax itself does not exceed the Gaussian null in every seed"),
        ((0.11, 0.3, 0.9), {}, "softmax itself does not exceed the Gaussian null beyond seed noise"),
        ((math.inf, 1.0, 1.01), {}, "measured in 2 seeds only"),
        ((1.0, 1.01, 1.02), {"corpus": "dead"}, "trained on different corpora"),
    ],
)
def test_what_is_not_assessable_says_why(tmp_path, softmax, changes, reason):
    _, _, found = two(tmp_path, softmax, (0.3, 0.32, 0.31), **changes)
    verdict = found.verdicts[0]
    assert (verdict.word, verdict.reason) == (NOT_ASSESSABLE, reason)


def test_pruning_is_judged_where_it_costs_anything(tmp_path):
    # A mask by chance costs more than a chosen one: the gap lies below that null, and above 0.
    _, _, found = two(tmp_path, (0.05, 0.051, 0.052), (0.03, 0.032, 0.031))
    words = {verdict.measure.title: verdict.word for verdict in found.verdicts}
    assert words["magnitude 50 %"] == words["w8a8 qualcomm"] == DIFFERS
    assert words["w8a8 absmax"] == NOT_ASSESSABLE
    _, _, found = two(tmp_path / "none", (-0.01, 0.051, 0.052), (0.03, 0.032, 0.031))
    reasons = {verdict.measure.title: verdict.reason for verdict in found.verdicts}
    assert reasons["magnitude 50 %"] == "softmax itself does not exceed a gap of 0 in every seed"


def test_a_gap_that_is_not_finite_is_said_and_not_judged(tmp_path):
    # Of four seeds three would be left, without the one that broke.
    comparison, rows, found = two(tmp_path, (1.0, 1.01, 1.02, 1.0), (0.3, 0.32, math.nan, 0.31))
    verdict = found.verdicts[0]
    assert (verdict.word, verdict.reason) == (NOT_ASSESSABLE, "the gap of sigmoid is not finite in every seed")
    cells = found.gaps["w8a8 absmax"].cells
    assert (cells["sigmoid"].note, cells["softmax"].note) == ("not finite in 1 of 4 seeds", "")
    assert found.excesses["w8a8 absmax"].cells["sigmoid"].note == "not finite in 1 of 4 seeds"
    rows["sigmoid"] = dict(enumerate(map(rows_of, [math.inf] * 4)))
    page = write(tmp_path / "out", [(comparison, rows)], Options(None, 5, None, "float32"), [])
    assert "Seeds whose gap is not finite are left out." in page.read_text("utf-8")
    assert "sigmoid,w8a8 absmax/gap,w8a8 absmax,nats per token,,,,,,not finite in 4 of 4 seeds" in (
        tmp_path / "out" / "compression.csv"
    ).read_text("utf-8")


def test_findings_say_of_which_variants_and_what_their_mark_means(tmp_path):
    for seed in range(3):
        for attention in ("softmax", "sigmoid", "softpick")[: 3 if seed == 0 else 2]:
            write_run(tmp_path, attention, seed, probes=False)
    (comparison,) = load(tmp_path)
    # sigmoid lies 0.1 ± 0.03 below: clear by itself, not after a correction for six.
    gaps = {"softmax": (1.0, 1.01, 1.02), "sigmoid": (0.87, 0.91, 0.95), "softpick": (0.5,)}
    rows = {label: dict(enumerate(map(rows_of, values))) for label, values in gaps.items()}
    page = write(tmp_path / "out", [(comparison, rows)], Options(None, 5, None, "float32"), []).read_text("utf-8")
    assert "Not assessable, fewer than 3 seeds (1 shared): every setting (softpick)." in page
    assert "w8a8 absmax: sigmoid −0.100 [−0.175, −0.025] *." in page
    assert "* The interval excludes 0 by itself; the test corrected for all comparisons does not." in page


def test_one_variant_has_nothing_to_be_compared_with(tmp_path):
    write_run(tmp_path, "softmax", 0, probes=False)
    (comparison,) = load(tmp_path)
    page = write(tmp_path, [(comparison, {"softmax": {0: rows_of(1.0)}})], Options(None, 5, None, "float32"), [])
    assert "There is one variant only: nothing to compare it with." in page.read_text("utf-8")


def test_comparisons_of_one_name_keep_apart(tmp_path):
    found = []
    for study in ("one", "two"):
        for seed, state in ((0, "finished"), (1, "running")):
            write_run(tmp_path / study / "text", "softmax", seed, probes=False, state=state)
    for comparison in load(tmp_path):
        found.append((comparison, {"softmax": {0: rows_of(1.0)}}))
    assert [comparison.name for comparison, _ in found] == ["one/text", "two/text"]
    assert left_out(load(tmp_path))[1] == "two/text: softmax seed=1, running at step 200 of 200"
    write(tmp_path / "out", found, Options(None, 5, None, "float32"), [])
    figures = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert figures == ["one_text-main-settings.png", "two_text-main-settings.png"]
    with (tmp_path / "out" / "compression.csv").open(newline="", encoding="utf-8") as file:
        assert {row["comparison"] for row in csv.DictReader(file)} == {"one/text", "two/text"}


def test_seed_noise_is_no_difference(tmp_path):
    _, _, found = two(tmp_path, (1.0, 1.01, 1.02), (1.01, 1.0, 1.03))
    assert {verdict.word for verdict in found.verdicts[: len(MAIN)]} == {NO_DIFFERENCE}

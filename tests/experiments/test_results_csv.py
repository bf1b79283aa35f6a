"""results.csv says what the page says, unrounded; the quantisation gap is a measure where it was logged."""

import csv
import math
import re
from statistics import stdev

import pytest
from synthetic_runs import flat, write_run

from experiments.drawing.words import number, signed
from experiments.report import build, tables
from experiments.report.assess import DIFFERS, NO_DIFFERENCE, NOT_ASSESSABLE, assess
from experiments.report.comparison import Comparison, load
from experiments.report.figures import curves
from experiments.report.results import COLUMNS, Line, as_csv, results
from experiments.report.wording import findings
from outliers.definitions import DEFINITIONS

SEEDS = (0, 1, 2)
GAP = "quantization_gap"


def noisy(seed, factor=1.0):
    """Every measure with a spread over seeds; the gate-weighted mass of the first key times `factor` after training."""

    def value(metric, step):
        trained = flat(metric, step) + 0.001 * (seed * seed - seed) * (step > 0)
        return trained * factor if metric == "first_key_mass_gated" and step else trained

    return value


def gap(last, seed):
    return {f"outliers/{GAP}": lambda step: 0.002 + ((last + 0.001 * seed) * step / 200 if step else 0)}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Comparison:
    """Two variants with three seeds that differ in the first key's mass and the gap, and a third one that has begun."""
    folder = tmp_path_factory.mktemp("results")
    for seed in SEEDS:
        loss = lambda step, seed=seed: 3.0 - step / 100 + seed / 3  # noqa: E731
        write_run(folder, "softmax", seed, loss=loss, number=noisy(seed), logged=gap(0.5, seed))
        write_run(folder, "context_scaling", seed, loss=loss, number=noisy(-seed, 0.1), logged=gap(0.02, -seed))
    write_run(folder, "sigmoid", 0, steps=100, state="running")
    write_run(folder, "softmax", 3, steps=100, state="running")
    return load(folder)[0]


@pytest.fixture(scope="module")
def lines(comparison) -> list[Line]:
    return results(comparison, assess(comparison))


@pytest.fixture(scope="module")
def rows(comparison, lines) -> dict[tuple[str, str], dict[str, str]]:
    reader = csv.DictReader(as_csv((comparison, line) for line in lines).splitlines())
    found = {(row["variant"], row["measure"]): row for row in reader}
    assert tuple(reader.fieldnames) == COLUMNS
    return found


def test_numbers_are_unrounded_and_those_of_the_runs(rows):
    loss = rows["softmax", "validation/loss"]
    ends = [1.0, 1.0 + 1 / 3, 1.0 + 2 / 3]
    assert float(loss["mean"]) == sum(ends) / 3
    assert float(loss["standard_deviation"]) == stdev(ends)
    assert (loss["seeds"], loss["verdict"], loss["difference"]) == ("3", "", "")
    assert float(rows["softmax", "validation/bits_per_byte"]["mean"]) == pytest.approx(2 / 3)
    assert float(rows["context_scaling", "parameters_added"]["mean"]) > 0
    assert rows["context_scaling", "parameters"]["seeds"] == ""


def test_nulls_differences_and_verdicts(rows):
    sink = rows["context_scaling", "first_key_mass_gated"]
    assert sink["verdict"] == DIFFERS
    assert 0 < float(sink["p_holm"]) < 0.05
    assert float(sink["difference_low"]) < float(sink["difference"]) < float(sink["difference_high"]) < 0
    assert (sink["pairs"], sink["null_kind"]) == ("3", "initialisation")
    assert float(sink["null"]) == pytest.approx(0.1)
    slot = rows["sigmoid", "first_key_mass"]
    assert (slot["own_null_kind"], float(slot["own_null"])) == ("closed form", pytest.approx(1 / 65))
    assert slot["note"] == "unfinished: step 100"
    assert slot["verdict"] == NOT_ASSESSABLE
    assert slot["reason"] == "fewer than 3 seeds (0 shared)"
    assert (rows["sigmoid", "runs"]["mean"], rows["sigmoid", "runs"]["note"]) == ("0.0", "1 running")


def test_all_numbers_are_of_finished_runs_where_there_are_some(rows):
    for measure in ("validation/loss", "entropy", "tokens_per_second", "peak_memory"):
        assert (rows["softmax", measure]["seeds"], rows["softmax", measure]["note"]) == ("3", "")
        assert (rows["sigmoid", measure]["seeds"], rows["sigmoid", measure]["note"]) == ("1", "unfinished: step 100")
    assert rows["softmax", "runs"]["note"] == "1 running"


def test_a_number_of_fewer_seeds_says_so(tmp_path):
    for seed in SEEDS:
        write_run(tmp_path, "softmax", seed, probes=seed != 1)
    (comparison,) = load(tmp_path)
    by_id = {line.id: line.cells.get("softmax") for line in results(comparison, assess(comparison))}
    assert (by_id["entropy"].note, by_id["validation/loss"].note) == ("in 2 of 3 seeds", "")


def test_the_page_shows_the_same_numbers(comparison, lines, rows):
    cells = {
        title: re.findall(r"<td>(.*?)</td>", body)[1:]
        for title, body in re.findall(r'<th scope="row">([^<]*)(.*?)</tr>', tables.results(comparison, lines))
    }
    variants = [variant.label for variant in comparison.variants]
    compared = 0
    for (variant, measure), row in rows.items():
        if row["seeds"] and not measure.startswith("steps_to"):
            cell = cells[row["title"]][variants.index(variant)]
            assert number(float(row["mean"])) in cell
            if row["difference_low"]:
                assert f"[{signed(float(row['difference_low']))}, {signed(float(row['difference_high']))}]" in cell
            assert row["verdict"] in cell
            compared += 1
    assert compared > 40


def test_the_gap_of_quantisation_is_judged_where_it_is_logged(comparison, rows):
    row = rows["context_scaling", GAP]
    assert (row["verdict"], row["unit"]) == (DIFFERS, "nats per token")
    # −0.48, −0.482, −0.484: the last values of three seeds.
    assert float(row["difference"]) == pytest.approx(-0.482)
    assert (row["null_kind"], float(row["null"])) == ("initialisation", 0.002)
    assert ("sigmoid", GAP) not in rows
    shown = findings(comparison, assess(comparison)).shows
    assert any("Log perplexity lost in 8 bits (softmax 0.503, null 0.0020): context_scaling lower" in s for s in shown)


def test_the_gap_within_its_null_is_not_judged(tmp_path):
    for seed in SEEDS:
        write_run(tmp_path, "softmax", seed, probes=False, logged={f"outliers/{GAP}": lambda step: 0.002 - step / 1e6})
        write_run(tmp_path, "sigmoid", seed, probes=False, logged={f"outliers/{GAP}": lambda step: 0.5})
    (comparison,) = load(tmp_path)
    assert [picture.name for picture in curves(comparison)][-1] == f"curve-{GAP}"
    verdict = next(v for v in assess(comparison).verdicts if v.measure.id == GAP)
    assert verdict.word == NOT_ASSESSABLE
    assert "does not exceed the metric’s null" in verdict.reason


@pytest.mark.parametrize("infinite", ["softmax", "sigmoid"])
def test_a_number_that_is_not_finite_in_one_seed_is_shown_and_not_judged(tmp_path, infinite):
    for seed in SEEDS:
        for attention in ("softmax", "sigmoid"):
            broken = attention == infinite and seed == 1
            logged = gap(math.inf if broken else 0.5, seed * (attention == "softmax"))
            end = math.inf if broken else 1.0 + seed
            loss = lambda step, end=end: 3.0 if step < 200 else end  # noqa: E731
            write_run(tmp_path, attention, seed, probes=False, logged=logged, loss=loss)
    page = build(tmp_path).read_text(encoding="utf-8")
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["variant"], row["measure"]): row for row in csv.DictReader(file)}
    for measure in (GAP, "validation/loss"):
        assert (rows[infinite, measure]["mean"], rows[infinite, measure]["standard_deviation"]) == ("inf", "")
        row = rows["sigmoid", measure]
        assert (row["verdict"], row["reason"], row["difference_low"]) == (
            NOT_ASSESSABLE,
            "not finite in every seed",
            "",
        )
    assert "inf<span class=delta>not finite</span>" in page


def test_runs_without_the_gap_are_silent_about_it(tmp_path):
    for seed in SEEDS:
        write_run(tmp_path, "softmax", seed, probes=False)
        write_run(tmp_path, "sigmoid", seed, probes=False)
    path = build(tmp_path)
    (comparison,) = load(tmp_path)
    assessment = assess(comparison)
    assert all(verdict.measure.id != GAP for verdict in assessment.verdicts)
    assert GAP not in (tmp_path / "results.csv").read_text()
    assert not (tmp_path / "figures" / f"curve-{GAP}.png").exists()
    # The definitions at the page's end name it; nothing before does.
    title = DEFINITIONS[GAP].title
    assert title not in path.read_text(encoding="utf-8").partition('<section id="definitions">')[0]
    assert {v.word for v in assessment.verdicts} <= {NO_DIFFERENCE, NOT_ASSESSABLE}

"""The verdicts: each rule with a case of its own."""

import math

import pytest
from synthetic_runs import flat, write_run

from experiments.drawing.words import number, signed
from experiments.report.assess import DIFFERS, NO_DIFFERENCE, NOT_ASSESSABLE, assess
from experiments.report.comparison import load
from experiments.report.measures import LOSS, at, measures, nulls
from experiments.report.wording import findings
from experiments.runs import Run
from outliers.nulls import gaussian_column_max

NOISE = (0.000, 0.002, 0.001)
GATED = "first_key_mass_gated"


def loss_of(offset, seed):
    return lambda step: 3.0 - step / 100 + (offset + NOISE[seed]) * step / 200


def number_of(factor, seed, only=GATED):
    def found(metric, step):
        value = flat(metric, step) + NOISE[seed] * (step > 0)
        return value * factor if metric == only and step else value

    return found


def harmonic(T):
    return sum(1 / i for i in range(1, T + 1))


def two_variants(tmp_path, seeds=(0, 1, 2), offset=0.0, factor=1.0, other=None, attention="sink_logit", **options):
    """softmax and one more variant, whose loss and gate-weighted mass on the first key differ as asked."""
    for seed in seeds:
        write_run(tmp_path, "softmax", seed, **{"loss": loss_of(0.0, seed), "number": number_of(1, seed)} | options)
        changed = options | (other or {})
        # The second variant's noise is another one, so that paired differences have a spread.
        write_run(
            tmp_path, attention, seed, **{"loss": loss_of(offset, -seed), "number": number_of(factor, -seed)} | changed
        )
    (comparison,) = load(tmp_path)
    return comparison, assess(comparison)


def verdict_on(assessment, key, variant="sink_logit"):
    return next(v for v in assessment.verdicts if v.measure.id == key and v.variant == variant)


def test_a_large_difference_is_one(tmp_path):
    comparison, assessment = two_variants(tmp_path, offset=-0.4, factor=0.1)
    loss, sink = verdict_on(assessment, LOSS), verdict_on(assessment, GATED)
    assert (loss.word, sink.word) == (DIFFERS, DIFFERS)
    # Paired by seed: −0.4 + (0 − 0), (0.001 − 0.002), (0.002 − 0.001) at the last step.
    assert loss.difference.mean == pytest.approx(-0.4)
    assert loss.difference.high - loss.difference.mean == pytest.approx(4.30265 * 0.001 / 3**0.5, rel=1e-4)
    assert sink.difference.mean == pytest.approx(0.1 * 0.201 - 0.201)
    shows = " ".join(findings(comparison, assessment).shows)
    assert "Validation loss (softmax 1.001, null 3.000): sink_logit lower by 0.400" in shows
    assert "Mass on the first key, gate-weighted (softmax 0.201, null 0.100): sink_logit lower by 0.181 [−" in shows
    assert "], its own null 0.059." in shows  # a logit's share of even attention: mean 1 / (1 + i)


def test_seed_noise_is_no_difference(tmp_path):
    comparison, assessment = two_variants(tmp_path)
    assert verdict_on(assessment, LOSS).word == NO_DIFFERENCE
    assert verdict_on(assessment, GATED).word == NO_DIFFERENCE
    assert assessment.made == sum(v.word == NO_DIFFERENCE for v in assessment.verdicts)
    found = findings(comparison, assessment)
    assert any(line.startswith("Validation loss (softmax 1.001, null 3.000): sink_logit") for line in found.shows_not)
    assert not any("sink_logit lower" in line or "sink_logit higher" in line for line in found.shows)


def test_holm_counts_all_assessable_comparisons(tmp_path):
    # This difference alone: t = −0.008/(0.001/√3) = 13.9, two degrees of freedom, p = 0.0051. With all counted not.
    comparison, assessment = two_variants(tmp_path, offset=-0.008)
    loss = verdict_on(assessment, LOSS)
    assert loss.difference.p < 0.01
    assert assessment.made >= 10
    assert loss.adjusted_p == pytest.approx(min(1.0, loss.difference.p * assessment.made))
    assert loss.word == NO_DIFFERENCE
    shows_not = findings(comparison, assessment).shows_not
    assert shows_not[0].endswith("] *.")
    assert shows_not[-1].startswith("* The interval excludes 0 by itself")


def test_two_seeds_are_not_assessable(tmp_path):
    comparison, assessment = two_variants(tmp_path, seeds=(0, 1), offset=-0.4)
    assert {v.word for v in assessment.verdicts} == {NOT_ASSESSABLE}
    assert verdict_on(assessment, LOSS).reason == "fewer than 3 seeds (2 shared)"
    assert verdict_on(assessment, LOSS).difference.mean == pytest.approx(-0.4, abs=0.01)
    assert "Not assessable, fewer than 3 seeds (2 shared): every measure." in findings(comparison, assessment).cannot


def test_no_verdict_where_the_baseline_does_not_exceed_the_null(tmp_path):
    # The mass on the first key stays below H_64 / 64 = 0.074, the closed form.
    def low(metric, step):
        return 0.01 * (1 + step / 200) if metric == GATED else flat(metric, step)

    _, assessment = two_variants(tmp_path, factor=0.1, number=low, other={"number": low})
    sink = verdict_on(assessment, GATED)
    assert sink.word == NOT_ASSESSABLE
    assert "softmax itself does not exceed the metric’s null in every seed" in sink.reason
    assert assessment.nulls[GATED].value == pytest.approx(0.0741, abs=1e-3)


def test_one_seed_under_the_null_is_enough(tmp_path):
    for seed in range(3):
        fallen = 0.05 if seed == 1 else 0.5
        values = lambda metric, step, fallen=fallen: fallen if metric == GATED else flat(metric, step)  # noqa: E731
        write_run(tmp_path, "softmax", seed, number=values)
        write_run(tmp_path, "sink_logit", seed)
    assessment = assess(load(tmp_path)[0])
    assert "in every seed" in verdict_on(assessment, GATED).reason


def test_a_null_exceeded_within_seed_noise_only(tmp_path):
    for seed, last in enumerate((0.101, 0.3, 0.9)):
        values = lambda metric, step, last=last: (last if step else 0.1) if metric == GATED else flat(metric, step)  # noqa: E731
        write_run(tmp_path, "softmax", seed, number=values)
        write_run(tmp_path, "sink_logit", seed)
    assert "null beyond seed noise" in verdict_on(assess(load(tmp_path)[0]), GATED).reason


def test_a_small_value_may_be_the_outlier(tmp_path):
    # value_drain: a drained first value reads near 0, the null is 1.
    _, assessment = two_variants(tmp_path)
    drain = assessment.nulls["value_drain"]
    assert drain.exceeded
    assert drain.value == pytest.approx(1.0)


def test_no_verdict_on_the_loss_with_extra_parameters(tmp_path):
    comparison, assessment = two_variants(
        tmp_path, offset=-0.4, factor=0.1, attention={"name": "sink_key_value", "slots": 8}
    )
    label = comparison.others[0].label
    extra, share = comparison.extra_parameters(comparison.others[0])
    assert extra == 2 * 2 * 8 * 2 * 16
    assert share > 0.005
    assert verdict_on(assessment, LOSS, label).word == NOT_ASSESSABLE
    assert "extra parameters" in verdict_on(assessment, LOSS, label).reason
    # Other measures are judged all the same.
    assert verdict_on(assessment, GATED, label).word == DIFFERS


def test_no_verdict_on_the_loss_where_parameters_are_unknown(tmp_path):
    _, assessment = two_variants(tmp_path, other={"vocabulary": None})
    assert "not recorded" in verdict_on(assessment, LOSS).reason


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"corpus": "dead"}, "different corpora"),
        ({"tokens_per_step": 2000}, "different numbers of tokens"),
        ({"config": {"model.optimizer": {"lr": 0.01}}}, "other settings differ too: model.optimizer.lr"),
        ({"config": {"outliers": {"every": 50, "sequences": 8}}}, "other settings differ too: outliers.sequences"),
    ],
)
def test_unlike_runs_are_not_compared(tmp_path, other, reason):
    _, assessment = two_variants(tmp_path, offset=-0.4, other=other)
    assert {v.word for v in assessment.verdicts} == {NOT_ASSESSABLE}
    assert all(reason in v.reason and v.difference is None for v in assessment.verdicts)
    assert assessment.steps_to["sink_logit"].note == verdict_on(assessment, LOSS).reason


def test_the_place_of_the_data_is_no_setting(tmp_path):
    other = {"config": {"data": {"source": "stdlib", "folder": "/elsewhere", "workers": 2}}}
    _, assessment = two_variants(tmp_path, offset=-0.4, other=other)
    assert verdict_on(assessment, LOSS).word == DIFFERS


def test_parameters_may_be_matched_by_the_width_of_the_mlp(tmp_path):
    slots = {"name": "sink_key_value", "slots": 8}
    network = {"layers": 2, "heads": 2, "width": 32, "context": 64}
    matched = {"config": {"model.network": network | {"mlp_width": 120}}}  # 1,024 slot values against 8 channels of 65
    comparison, assessment = two_variants(
        tmp_path / "matched", offset=-0.4, attention=slots, config={"model.network": network | {"mlp_width": 128}},
        other=matched,
    )  # fmt: skip
    (variant,) = comparison.others
    assert 0 < abs(comparison.extra_parameters(variant)[1]) < 0.005
    assert verdict_on(assessment, LOSS, variant.label).word == DIFFERS
    matched["config"]["model.network"]["mlp_width"] = 64
    comparison, assessment = two_variants(
        tmp_path / "not", offset=-0.4, attention=slots, config={"model.network": network | {"mlp_width": 128}},
        other=matched,
    )  # fmt: skip
    assert "model.network.mlp_width" in verdict_on(assessment, LOSS, variant.label).reason


def test_a_share_that_is_full_in_every_seed_is_judged_by_its_resolution(tmp_path):
    # 2 layers × 2 heads × 4 sequences: steps of 1/16. Every seed reads 1 against 0.
    full = lambda metric, step: float(step > 0) if metric == "sink_rate@0.3" else flat(metric, step)  # noqa: E731
    none = lambda metric, step: 0.0 if metric == "sink_rate@0.3" else flat(metric, step)  # noqa: E731
    _, assessment = two_variants(tmp_path, number=full, other={"number": none})
    rate = verdict_on(assessment, "sink_rate@0.3")
    assert rate.word == DIFFERS
    t = 1 / (math.sqrt(2 / 12) / 16 / math.sqrt(3))
    assert rate.difference.p == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_equal_differences_without_a_resolution_are_not_judged(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "softmax", seed, number=number_of(1, seed))
        lower = lambda metric, step, seed=seed: number_of(1, seed)(metric, step) - 0.05 * (metric == GATED)  # noqa: E731
        write_run(tmp_path, "sink_logit", seed, number=lower)
    sink = verdict_on(assess(load(tmp_path)[0]), GATED)
    assert sink.difference.mean == pytest.approx(-0.05)
    assert sink.word == NOT_ASSESSABLE
    assert "no spread to test it against" in sink.reason


def test_a_null_is_not_called_exceeded_on_two_seeds(tmp_path):
    comparison, assessment = two_variants(tmp_path, seeds=(0, 1))
    assert not any(null.exceeded for null in assessment.nulls.values())
    assert assessment.nulls[GATED].reason == "fewer than 3 seeds (2 finished)"
    assert not any("exceeds the null" in line for line in findings(comparison, assessment).shows)


def test_an_unfinished_run_is_named(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "softmax", seed)
        unfinished = {"steps": 100, "state": "running"} if seed == 1 else {}
        write_run(tmp_path, "sink_logit", seed, **unfinished)
    assessment = assess(load(tmp_path)[0])
    assert verdict_on(assessment, LOSS).reason == "unfinished: sink_logit seed 1 running at step 100 of 200"


def test_a_reason_that_only_some_variants_have_names_them_once(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "softmax", seed)
        write_run(tmp_path, "fixed_bias", seed)
        write_run(tmp_path, "sink_logit", seed, corpus="dead", config={"data": {"source": "stdlib", "vocab_size": 300}})
    (comparison,) = load(tmp_path)
    cannot = findings(comparison, assess(comparison)).cannot
    assert "Not assessable, trained on different corpora: every measure (sink_logit)." in cannot
    assert "The runs do not share their settings: data.vocab_size (absent, 300)." in cannot


def test_what_a_variant_does_not_measure_is_not_judged(tmp_path):
    _, assessment = two_variants(tmp_path, offset=-0.4, other={"skipped": (GATED,)})
    assert verdict_on(assessment, GATED).reason == "not measured"
    assert verdict_on(assessment, LOSS).word == DIFFERS


def test_nulls_come_from_untrained_weights(tmp_path):
    comparison, _ = two_variants(tmp_path)
    run, measure = comparison.baseline.runs[0], next(m for m in measures() if m.id == GATED)
    expected = {"initialisation": 0.1, "random tokens": 0.1, "closed form": harmonic(64) / 64}
    assert nulls(run, measure) == pytest.approx(expected)
    # Trained weights on random tokens are read apart: a sink that forms on any text is still a sink.
    assert at(run, measure, None, "random") == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("attention", "network", "key", "expected"),
    [
        ({"name": "sink_key_value", "slots": 8}, {}, "explicit_sink_mass", sum(8 / (8 + i) for i in range(1, 65)) / 64),
        ({"name": "sink_key_value", "slots": 8}, {}, "first_key_mass", sum(1 / (8 + i) for i in range(1, 65)) / 64),
        ({"name": "sigmoid"}, {}, "first_key_mass", 1 / 65),
        ({"name": "softmax"}, {"mlp": "swiglu"}, "weight_column_down", gaussian_column_max(32, 128)),
        ({"name": "softmax"}, {"mlp": "swiglu", "width": 96}, "weight_column_down", gaussian_column_max(96, 256)),
        ({"name": "softmax"}, {"mlp_width": 80}, "weight_column_down", gaussian_column_max(32, 80)),
    ],
)
def test_closed_forms_are_those_of_the_runs_own_network_and_attention(tmp_path, attention, network, key, expected):
    network = {"layers": 2, "heads": 2, "width": 32, "context": 64} | network
    run = Run(write_run(tmp_path, attention, 0, config={"model.network": network}))
    measure = next(m for m in measures() if m.id == key)
    assert nulls(run, measure)["closed form"] == pytest.approx(expected)


def test_explicit_mass_is_moved_and_not_judged(tmp_path):
    def moved(metric, step):
        return (0.9 if step else 0.05) if metric == "explicit_sink_mass" else flat(metric, step)

    comparison, assessment = two_variants(tmp_path / "moved", other={"number": moved})
    assert not [v for v in assessment.verdicts if v.measure.id == "explicit_sink_mass"]
    (line,) = (line for line in findings(comparison, assessment).shows if line.startswith("sink_logit puts"))
    assert line.endswith("moved to a slot, not removed.")
    # A logit beside i keys of equal logits takes 1 / (1 + i) of a row.
    assert f"sink_logit puts 0.900 of its attention on its explicit sink (null {(harmonic(65) - 1) / 64:.3f})" in line

    # What a slot takes of even attention has not been moved.
    even = lambda metric, step: 0.05 if metric == "explicit_sink_mass" else flat(metric, step)  # noqa: E731
    comparison, assessment = two_variants(tmp_path / "even", other={"number": even})
    assert not any("sink_logit puts" in line for line in findings(comparison, assessment).shows)


def test_steps_to_the_baselines_loss(tmp_path):
    # softmax ends at 1.0; the other variant falls faster, 3 − step/80, and is there at step 160.
    fast = lambda step: 3.0 - step / 80  # noqa: E731
    for seed in range(2):
        write_run(tmp_path, "softmax", seed)
        write_run(tmp_path, "sink_logit", seed, loss=fast)
        write_run(tmp_path, "fixed_bias", seed, loss=lambda step: 3.0 - step / 120)
    steps = assess(load(tmp_path)[0]).steps_to
    assert steps["sink_logit"].by_seed == pytest.approx({0: 160, 1: 160})
    assert steps["softmax"].by_seed == pytest.approx({0: 200, 1: 200})
    assert steps["fixed_bias"].by_seed == {0: None, 1: None}


def test_an_unfinished_run_may_reach_the_baselines_loss_yet(tmp_path):
    write_run(tmp_path, "softmax", 0)
    write_run(tmp_path, "sink_logit", 0, steps=100, state="running")
    steps = assess(load(tmp_path)[0]).steps_to["sink_logit"]
    assert (steps.by_seed, steps.note) == ({}, "no finished run to compare with in the same seed")


def test_steps_to_the_baselines_loss_are_biased_by_a_cosine(tmp_path):
    for attention in ("softmax", "sink_logit"):
        write_run(tmp_path, attention, 0, config={"model.schedule": {"name": "cosine"}})
    steps = assess(load(tmp_path)[0]).steps_to["sink_logit"]
    assert steps.by_seed == {}
    assert steps.note == "biased by the cosine schedule"


def test_the_common_rate_is_named_as_untuned(tmp_path):
    comparison, assessment = two_variants(tmp_path)
    cannot = " ".join(findings(comparison, assessment).cannot)
    assert "same learning rate, 0.001 (constant): untuned" in cannot
    assert f"{len(assessment.verdicts)} comparisons were made" in cannot
    assert "Holm" in cannot
    # Two degrees of freedom have a closed form: P(|T| < t) = t/√(2 + t²), so t = p √(2/(1 − p²)).
    p = 1 - 0.05 / assessment.made
    needed = p * math.sqrt(2 / (1 - p * p)) / math.sqrt(3)
    assert f"With 3 seeds the strictest step asks for a mean difference of {needed:.1f} times" in cannot


def test_no_common_rate_is_named_where_there_is_none(tmp_path):
    comparison, assessment = two_variants(tmp_path, other={"config": {"model.optimizer": {"lr": 0.01}}})
    cannot = " ".join(findings(comparison, assessment).cannot)
    assert "same learning rate" not in cannot
    assert "The runs do not share their settings: model.optimizer.lr (0.001, 0.01)." in cannot


def test_numbers_in_text():
    assert [number(x) for x in (None, 0.0, 1234567.0, 12.3456, 0.1234, 0.00047, 0.000001, -2.0)] == [
        *("–", "0", "1,234,567", "12.35", "0.123", "0.00047", "1.0e−6", "−2.000")
    ]
    assert signed(0.5) == "+0.500"
    assert signed(-0.5) == "−0.500"


def test_gates_that_follow_the_position_are_no_sink(tmp_path):
    """The variant's mass differs from softmax's in every seed, and no more than its gates make without any sink."""
    made = "first_key_mass_gated_even"
    even = harmonic(256) / 256

    def gated(seed, factor, null):
        value = number_of(factor, seed)
        return lambda metric, step: null if metric == made else value(metric, step)

    def judged(folder, null):
        for seed in (0, 1, 2):
            write_run(folder, "softmax", seed, number=gated(seed, 1, even))
            write_run(folder, "context_scaling", seed, number=gated(-seed, 1.2, null))
        (comparison,) = load(folder)
        variant = comparison.others[0]
        assert nulls(variant.runs[0], next(m for m in measures() if m.id == GATED))["closed form"] == null
        return verdict_on(assess(comparison), GATED, variant.label)

    verdict = judged(tmp_path / "open_at_first", even + 0.05)  # the difference is about 0.2 · 0.2 = 0.04
    assert verdict.word == NOT_ASSESSABLE
    assert verdict.reason == f"no larger a difference than between their nulls, {even + 0.05:.3g} and {even:.3g}"
    assert judged(tmp_path / "constant", even).word == DIFFERS

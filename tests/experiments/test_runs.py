"""Reading run directories, whole and unfinished."""

import numpy as np
import pytest
from synthetic_runs import write_run

from errors import InputError
from experiments.report.comparison import load
from experiments.runs import Run, find
from models import GPT, GPTConfig


def test_a_finished_run(tmp_path):
    run = Run(write_run(tmp_path, {"name": "sink_key_value", "slots": 2}, 3, label="sink_key_value,slots=2"))
    assert (run.label, run.seed, run.finished, run.corpus) == ("sink_key_value,slots=2", 3, True, "c0ffee")
    assert run.status.max_steps == 200
    steps, losses = run.series("validation/loss")
    assert steps.tolist() == [0, 50, 100, 150, 200]
    assert losses.tolist() == [3.0, 2.5, 2.0, 1.5, 1.0]
    assert run.last("train/loss") == pytest.approx(1.01)
    assert set(run.probes["step"].to_pylist()) == {0, 50, 100, 150, 200}
    assert run.sentence["block_output"].shape == (2, 12, 32)


def test_parameters_are_those_of_the_network(tmp_path):
    run = Run(write_run(tmp_path, {"name": "sink_key_value", "slots": 2}, 0))
    network = GPT(GPTConfig(vocab_size=300, layers=2, heads=2, width=32, context=64), "softmax")
    # A slot has a key and a value of width 16 in each of two heads and two layers.
    assert run.parameters == network.parameter_count() + 2 * (2 * 16) * 2 * 2


def test_parameters_are_unknown_without_a_vocabulary(tmp_path):
    assert Run(write_run(tmp_path, "softmax", 0, vocabulary=None)).parameters is None


def test_a_run_that_has_only_begun(tmp_path):
    folder = tmp_path / "softmax" / "seed=4"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,tokens,train/loss\n0,0,\n10,10000,3.5\n20,200")
    run = Run(folder)
    assert (run.label, run.seed, run.status.state, run.finished) == ("softmax", 4, "not started", False)
    steps, losses = run.series("train/loss")
    assert steps.tolist() == [10]
    assert losses.tolist() == [3.5]
    assert (run.probes, run.sentence, run.parameters, run.corpus) == (None, None, None, None)
    assert run.last("validation/loss") is None
    empty = Run(tmp_path / "nothing")
    assert empty.metrics == {}
    assert len(empty.series("train/loss")[0]) == 0


@pytest.mark.parametrize("name", ["step=000100.parquet", "sentence.npz"])
def test_a_damaged_probe_is_named(tmp_path, name):
    run = Run(write_run(tmp_path, "softmax", 0))
    path = run.path / "probes" / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=rf"{name} cannot be read .* remove it"):
        _ = run.probes, run.sentence


def test_a_users_class_that_cannot_be_imported_keeps_its_name(tmp_path):
    run = Run(write_run(tmp_path, {"name": "my_place.attention.Mine", "beta": 2}, 0, label="mine"))
    assert run.label == "my_place.attention.Mine,beta=2"
    assert run.parameters is None
    assert run.setting is None


def test_runs_are_grouped_by_comparison(tmp_path):
    for place in ("text", "task"):
        for seed in (0, 1):
            write_run(tmp_path / place, "sink_logit", seed, probes=False)
            write_run(tmp_path / place, "softmax", seed, probes=False)
    text, task = sorted(load(tmp_path), key=lambda comparison: comparison.name, reverse=True)
    assert (text.name, task.name) == ("text", "task")
    assert [variant.label for variant in text.variants] == ["softmax", "sink_logit"]
    assert text.baseline.label == "softmax"
    assert text.seeds == [0, 1]
    # A variant keeps its colour over all comparisons.
    assert [v.colour for v in text.variants] == [v.colour for v in task.variants]
    assert len({v.colour for v in text.variants}) == 2


def test_two_runs_of_one_variant_and_seed_are_told_apart_by_their_folders(tmp_path):
    for folder, rate in (("slow", 1e-4), ("fast", 1e-3)):
        for seed in (0, 1):
            write_run(tmp_path, "softmax", seed, label=folder, probes=False, config={"model.optimizer": {"lr": rate}})
    (comparison,) = load(tmp_path)
    assert [(v.label, sorted(v.runs)) for v in comparison.variants] == [
        ("softmax (fast)", [0, 1]), ("softmax (slow)", [0, 1])
    ]  # fmt: skip
    assert comparison.unlike(comparison.others[0]) == "other settings differ too: model.optimizer.lr"


def test_seeds_of_one_variant_may_lie_in_folders_of_any_name(tmp_path):
    for seed, name in enumerate(("monday", "tuesday")):
        write_run(tmp_path / "made", "softmax", seed, probes=False).rename(tmp_path / name)
    (comparison,) = load(tmp_path)
    assert [(v.label, sorted(v.runs)) for v in comparison.variants] == [("softmax", [0, 1])]


def test_one_run_or_one_variant_may_be_asked_for(tmp_path):
    run = write_run(tmp_path, "softmax", 0, probes=False)
    assert find(run) == [run]
    assert find(tmp_path / "softmax") == [run]
    (comparison,) = load(run)
    assert np.array_equal(comparison.folder, tmp_path)


def test_the_first_variant_is_the_baseline_where_there_is_no_softmax(tmp_path):
    write_run(tmp_path, "sink_logit", 0, probes=False)
    write_run(tmp_path, "fixed_bias", 0, probes=False)
    assert load(tmp_path)[0].baseline.label == "fixed_bias"


def test_no_directory_and_no_runs(tmp_path):
    with pytest.raises(InputError, match=r"missing is not a directory"):
        find(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a directory"):
        find(tmp_path / "file")
    with pytest.raises(InputError, match="contains no run"):
        find(tmp_path)

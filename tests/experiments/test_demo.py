"""The demo's plan: what it changes of the configurations is valid, and each verdict has its seeds."""

from collections import Counter
from unittest.mock import MagicMock

import yaml

import data.corpus
import data.prepare
from experiments.demo import ATTENTIONS, COMPARISONS, CONFIGS, OUT, SEEDS, plan_all
from experiments.report.assess import SEEDS_NEEDED


def test_the_demos_runs_are_valid_and_taken_by_turns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepared = []
    monkeypatch.setattr(data.prepare, "prepare", prepared.append)
    monkeypatch.setattr(data.corpus, "Corpus", MagicMock())
    jobs = plan_all(2)
    assert [options.source for options in prepared] == ["stdlib", "bigram_backcopy"]
    assert Counter(job.comparison for job in jobs) == {str(OUT / name): 9 for name in COMPARISONS}
    assert [job.comparison for job in jobs[:4]] == [str(OUT / name) for name in COMPARISONS] * 2
    assert {job.label for job in jobs} == set(ATTENTIONS) >= {"softmax", "context_scaling", "sink_key_value"}
    assert len(SEEDS) >= SEEDS_NEEDED
    assert {job.steps for job in jobs} == {100, 2000}


def test_a_step_is_about_a_thousand_tokens():
    for config, _ in COMPARISONS.values():
        written = yaml.safe_load((CONFIGS / config).read_text())
        assert written["data"]["batch_size"] * written["model"]["network"]["context"] == 1024

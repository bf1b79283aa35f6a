"""Real runs, trained once for all tests that read some."""

from pathlib import Path

import pytest
import yaml

import train


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory) -> Path:
    """A comparison's folder: softmax and sink_logit with one finished run each, and one that was stopped half-way."""
    folder = tmp_path_factory.mktemp("tiny_runs")
    tiny = {
        "trainer": {"max_steps": 6, "accelerator": "cpu"},
        "model": {"compile": "false", "network": {"context": 16, "layers": 1, "heads": 2, "width": 16}},
        "data": {"source": "bigram_backcopy", "batch_size": 4, "folder": str(folder / "corpora")},
        "evaluation": {"every": 6},
        "outliers": {"every": 0},
        "checkpoints": {"every": 3},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    for attention, seed, more in (("softmax", 0, []), ("sink_logit", 0, []), ("softmax", 1, ["--stop_after", "3"])):
        out = folder / "runs" / attention / f"seed={seed}"
        argv = ["--model.attention", attention, "--seed_everything", str(seed), "--out", str(out), *more]
        assert train.main(["fit", "--config", str(folder / "tiny.yaml"), *argv]) == 0
    return folder / "runs"

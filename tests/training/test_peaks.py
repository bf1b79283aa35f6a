"""Peaks of devices, and the operations of a training step beside torch's own count."""

import csv
import re

import pytest
import torch
from tiny_run import CONTEXT, tiny_run
from torch.utils.flop_counter import FlopCounterMode

from models import GPT, GPTConfig
from models.flops import flops_per_token
from training.callbacks import metrics, progress
from training.peaks import device_peak, peak


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989.4),
        ("NVIDIA H200", "bf16-true", 989.4),
        ("NVIDIA A100-SXM4-80GB", "32-true", 19.5),
        ("NVIDIA H100 NVL", "bf16-mixed", 835.5),
        ("NVIDIA H100 80GB HBM3", "64-true", None),
        ("Tesla V100-SXM2-16GB", "bf16-mixed", None),
        ("NVIDIA A10G", "bf16-mixed", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bf16-mixed", None),
        ("AMD Instinct MI300X", "bf16-mixed", None),
    ],
)
def test_a_known_device_has_its_peak_and_no_other_is_guessed(name, precision, tera):
    assert peak(name, precision) == (None if tera is None else pytest.approx(tera * 1e12))


def test_tf32_counts_where_torch_may_use_it():
    torch.set_float32_matmul_precision("high")
    try:
        assert peak("NVIDIA A100-SXM4-80GB", "32-true") == 156e12
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_cpu_has_none():
    assert device_peak(torch.device("cpu"), "32-true") is None


@pytest.mark.parametrize(
    ("attention", "options"),
    [("softmax", {}), ("softmax", {"tie_embeddings": False, "mlp": "swiglu", "bias": False}), ("context_scaling", {}),
     ("sink_token", {})],
)  # fmt: skip
def test_the_operations_are_those_that_torch_counts(attention, options):
    """torch counts the whole T × T of attention; a causal row reads (T + 1) / 2 keys of T on average."""
    B, T, L, C = 2, 24, 2, 32
    gpt = GPT(
        GPTConfig(vocab_size=50, context=T, layers=L, heads=4, width=C, **options), attention, backend="reference"
    )
    with FlopCounterMode(display=False) as counter:
        gpt(torch.zeros(B, T, dtype=torch.int64)).sum().backward()
    P = gpt.prefix_tokens
    dense = 12 * L * C * (T + P)
    # The prefix passes through the blocks too, but it is no token of the text.
    blocks = 6 * sum(module.weight.numel() for module in gpt.blocks.modules() if isinstance(module, torch.nn.Linear))
    expected = counter.get_total_flops() / (B * T) - P / T * (blocks + dense)
    assert flops_per_token(gpt, T) == pytest.approx(expected - dense + dense * (T + P + 1) / (2 * (T + P)), rel=1e-9)


def test_a_run_logs_utilisation_where_the_peak_is_known_and_the_time_left(tmp_path, text, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE", 0.0)
    bar = progress.ShowProgress()
    tiny_run(tmp_path / "unknown", text, steps=4, evaluation=0, extra=(bar,)).fit()
    assert "MFU" not in capsys.readouterr().err
    monkeypatch.setattr(metrics, "device_peak", lambda device, precision: 1e12)
    run = tiny_run(tmp_path / "known", text, steps=4, evaluation=0, extra=(progress.ShowProgress(),)).fit()
    assert re.search(
        r"^step 2/4  [\d,]+ tokens/s  MFU \d+\.\d%  \d\.\d GiB  0:00:\d\d left$", capsys.readouterr().err, re.M
    )

    def rows(name):
        with open(tmp_path / name / "metrics.csv", newline="") as file:
            return [row for row in csv.DictReader(file) if row["train/loss"]]

    assert [row["time/mfu"] for row in rows("unknown")] == ["", ""]
    for row in rows("known"):
        flops = flops_per_token(run.module.gpt, CONTEXT)
        assert float(row["time/mfu"]) == pytest.approx(float(row["time/tokens_per_second"]) * flops / 1e12)
    assert float(rows("known")[0]["time/left_seconds"]) > 0
    assert float(rows("known")[-1]["time/left_seconds"]) == 0

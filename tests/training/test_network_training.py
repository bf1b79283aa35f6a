"""Short runs under each switch of the network: start, fall of the loss, probe, resume."""

import math

import pyarrow.parquet as parquet
import pytest
import torch
from tiny_run import differences, metrics, tensors, tiny_run

from training.loss import nats, nats_to_compile
from training.optimizers import OptimizerConfig

EVERY = {"norm": "rmsnorm_single", "norm_position": "sandwich", "embedding_projection": True, "pad_vocab": 64}


@pytest.mark.parametrize("switch", [{name: value} for name, value in EVERY.items()], ids=list(EVERY))
def test_a_run_starts_at_the_uniform_loss_and_learns(tmp_path, text, switch):
    run = tiny_run(
        tmp_path / "run", text, steps=6, rate=1e-2, network=switch, log_every=1, evaluation=0, outliers=6
    ).fit()
    losses = [float(row["train/loss"]) for row in metrics(tmp_path / "run") if row["train/loss"]]
    assert losses[0] == pytest.approx(math.log(257), abs=0.05)
    assert losses[-1] < losses[0] - 0.3
    table = parquet.read_table(tmp_path / "run/probes/step=000006.parquet")
    sites = set(table["site"].to_pylist()) - {None, ""}
    assert {"norm_attention", "norm_mlp", "norm_final", "attention_output", "mlp_output", "block_output"} <= sites
    assert not any(math.isnan(value) for value in table["value"].to_pylist())
    if "pad_vocab" in switch:
        assert (run.module.gpt.embedding.weight[257:] == 0).all()


def test_padding_the_vocabulary_changes_no_number(tmp_path, text):
    """Within rounding: the matrix products have another shape. In float64 that is 1e-12 after six steps."""
    for name, pad in (("plain", 1), ("padded", 64)):
        tiny_run(tmp_path / name, text, network={"pad_vocab": pad}, log_every=1, precision="64-true").fit()
    plain, padded = metrics(tmp_path / "plain"), metrics(tmp_path / "padded")
    for column in ("train/loss", "train/grad_norm", "validation/loss", "validation/bits_per_byte"):
        values = [[float(row[column]) for row in rows if row[column]] for rows in (plain, padded)]
        assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_the_loss_to_compile_leaves_the_padding_out_too():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(9, (2, 5), generator=generator)
    for loss in (nats, nats_to_compile):
        logits.grad = None
        value = loss(logits, targets, 9)
        value.backward()
        assert value.item() == pytest.approx(nats(logits[..., :9], targets).item(), rel=1e-14)
        assert (logits.grad[..., 9:] == 0).all()
        assert torch.allclose(logits.grad[..., :9].sum(-1), torch.zeros(2, 5, dtype=torch.float64), atol=1e-14)


def test_all_of_it_with_muon_resumes_bitwise(tmp_path, text):
    options = {"network": EVERY, "optimizer": OptimizerConfig("muon", lr=3e-3), "steps": 5, "outliers": 2}
    whole = tiny_run(tmp_path / "whole", text, **options).fit()
    tiny_run(tmp_path / "parts", text, stop_after=3, **options).fit()
    resumed = tiny_run(tmp_path / "parts", text, **options).fit(tmp_path / "parts/checkpoints/last.ckpt")
    assert differences(tensors(whole), tensors(resumed)) == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")

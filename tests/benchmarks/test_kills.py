"""A run killed at random moments ends as if nothing had happened: the script that the log quotes, with fewer kills."""

import random

import torch

from benchmarks import kills


def test_a_killed_run_ends_bit_for_bit_as_the_one_left_alone(tmp_path):
    settings = kills.SETTINGS | {"trainer.max_steps": 60, "data.folder": tmp_path / "data"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert kills.killed(kills.command(whole, settings), whole, 0, random.Random(0), 0.0, print) == 0
    assert kills.killed(kills.command(parts, settings), parts, 2, random.Random(1), 0.3, print) >= 1
    assert kills.differences(whole, parts) == []

    # The comparison sees what it should: one bit of a weight, one probe, one row.
    last = torch.load(parts / "checkpoints/last.ckpt", weights_only=True)
    last["state_dict"]["gpt.embedding.weight"].view(torch.int32).view(-1)[0] ^= 1
    torch.save(last, parts / "checkpoints/last.ckpt")
    (parts / "probes/step=000000.parquet").unlink()
    (parts / "metrics.csv").write_text("".join((parts / "metrics.csv").read_text().splitlines(True)[:-1]))
    assert kills.differences(whole, parts) == [
        "probes/step=000000.parquet is in one directory alone",
        "state_dict.gpt.embedding.weight",
        "state_dict.gpt.head.weight",  # the same tensor, tied
        "metrics.csv",
    ]

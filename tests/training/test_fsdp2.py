"""FSDP2 on two processes with gloo: the numbers of ddp, exact resume, and checkpoints that any strategy takes up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fsdp_ranks import OPTIONS
from tiny_run import differences, metrics, tiny_run

from errors import InputError
from models.checkpoints import load_weights
from training.cli import check
from training.command_line import CommandLine

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory, text) -> Path:
    """The directories that `fsdp_ranks.main` leaves."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    command = [sys.executable, HERE / "fsdp_ranks.py", folder, text]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def tensors(saved: dict) -> dict[str, torch.Tensor]:
    """Weights and optimizer state by name."""
    states = saved["optimizer_states"][0]["state"]
    moments = {f"{index}.{name}": value for index, state in states.items() for name, value in state.items()}
    return saved["state_dict"] | moments


def test_fsdp2_equals_ddp(runs):
    ddp, sharded = (metrics(runs / name) for name in ("ddp", "chain"))
    for one, other in zip(ddp[:6], sharded[:6], strict=True):
        assert one.keys() == other.keys()
        for column, value in one.items():
            assert bool(value) == bool(other[column])
            if value:  # the order of sums over ranks differs: a few units of the last place of float32
                assert float(other[column]) == pytest.approx(float(value), rel=1e-5), column


def test_an_interrupted_run_equals_the_whole_one_bit_for_bit(runs):
    whole, parts = (checkpoint(runs / name) for name in ("whole", "parts"))
    assert differences(tensors(whole), tensors(parts)) == []
    assert all(torch.equal(one["torch"], other["torch"]) for one, other in zip(whole["rng"], parts["rng"], strict=True))
    assert not torch.equal(whole["rng"][0]["torch"], whole["rng"][1]["torch"])
    assert metrics(runs / "whole") == metrics(runs / "parts")
    for path in (runs / "whole/probes").iterdir():
        assert (path.suffix == ".npz") or path.read_bytes() == (runs / "parts/probes" / path.name).read_bytes()
    assert (runs / "whole/probes/sentence.npz").exists()


def test_a_run_goes_on_under_ddp_fsdp2_and_one_process(runs, text):
    """Steps 1 to 3 under ddp, 4 and 5 under fsdp2, 6 to 8 here, against ddp all the way."""
    last = runs / "chain/checkpoints/last.ckpt"
    tiny_run(runs / "chain", text, batch_size=4, **OPTIONS).fit(last)
    whole, chain = checkpoint(runs / "ddp"), checkpoint(runs / "chain")
    assert whole["optimizer_states"][0]["param_groups"] == chain["optimizer_states"][0]["param_groups"]
    for name, tensor in tensors(whole).items():
        assert torch.allclose(tensors(chain)[name], tensor, atol=1e-5), name
    for one, other in zip(metrics(runs / "ddp"), metrics(runs / "chain"), strict=True):
        for column in ("step", "tokens", "train/loss", "validation/loss"):
            assert one[column] == other[column] or float(other[column]) == pytest.approx(float(one[column]), rel=1e-5)


def test_weights_alone_are_whole_and_tied(runs):
    weights, description = load_weights(runs / "whole/checkpoints/weights-step=000008.safetensors")
    saved = checkpoint(runs / "whole")["state_dict"]
    assert {f"gpt.{name}" for name in weights} == saved.keys()
    assert all(torch.equal(saved[f"gpt.{name}"], tensor) for name, tensor in weights.items())
    assert weights["head.weight"].data_ptr() == weights["embedding.weight"].data_ptr()
    assert description["attention"] == {"name": "sink_token"}


def test_an_overflow_on_one_rank_is_named_by_all_of_them(runs):
    texts = {(runs / f"overflow-{rank}.txt").read_text() for rank in (0, 1)}
    assert len(texts) == 1
    assert texts.pop().startswith("step 3 met a number that is not finite, first in the output of blocks.1.mlp.down")


def test_one_device_has_nothing_to_shard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = CommandLine("fit", ["--trainer.strategy=fsdp2", "--trainer.devices=1", "--trainer.accelerator=cpu"])
    plan = command.plan()
    assert plan.config["trainer"]["strategy"] == "fsdp2"
    assert type(command.make(plan)[0].strategy).__name__ == "SingleDeviceStrategy"


@pytest.mark.parametrize(
    ("strategy", "part"),
    [
        ("fsdp", "did you mean fsdp2"),
        ("deepspeed", "auto, ddp, fsdp2, single_device"),
        ("ddp_spawn", "it is one of auto, ddp"),
    ],
)
def test_a_strategy_that_breaks_our_guarantees_is_refused(strategy, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"trainer\.strategy is {strategy}.*{part}"):
        check(["--trainer.strategy", strategy, "--trainer.devices", "2", "--trainer.accelerator", "cpu"])

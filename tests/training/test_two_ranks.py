"""Two processes with gloo see the batches of one, and report one loss."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import metrics, tiny_run

HERE = Path(__file__).parent

SCRIPT = """
from lightning.pytorch.strategies import DDPStrategy
from tiny_run import tiny_run

if __name__ == "__main__":
    def run(name, **options):
        ddp = DDPStrategy(process_group_backend="gloo")
        options |= dict(batch_size=2, accumulation=2, outliers=4, strategy=ddp, devices=2, steps=4)
        return tiny_run(f"{folder}/{{name}}", {text!r}, **options)

    run("two").fit()
    # Interrupted at an odd step, with other dropout masks on each rank; Lightning starts the second rank only once.
    run("dropout", network={{"dropout": 0.1}}).fit()
    run("parts", network={{"dropout": 0.1}}, stop_after=3).fit()
    run("parts", network={{"dropout": 0.1}}, workers=1).fit("{folder}/parts/checkpoints/last.ckpt")
"""


def test_two_ranks_equal_one_and_their_checkpoint_resumes(tmp_path, text):
    script = tmp_path / "two.py"
    script.write_text(SCRIPT.format(folder=tmp_path, text=str(text)))
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        assert name not in os.environ
    done = subprocess.run(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    whole = tiny_run(tmp_path / "one", text, batch_size=4, accumulation=2, outliers=4, steps=4).fit()

    two = torch.load(tmp_path / "two/checkpoints/last.ckpt", weights_only=True)
    assert len(two["rng"]) == 2
    assert not torch.equal(two["rng"][0]["torch"], two["rng"][1]["torch"])
    for name, tensor in whole.module.state_dict().items():
        assert torch.allclose(two["state_dict"][name], tensor, atol=1e-6)
    rows = metrics(tmp_path / "two")
    for one, other in zip(metrics(tmp_path / "one"), rows, strict=True):
        assert one["tokens"] == other["tokens"]
        for column in ("train/loss", "validation/loss", "validation/bits_per_byte", "outliers/first_key_mass"):
            assert bool(one[column]) == bool(other[column])
            if one[column]:
                assert float(other[column]) == pytest.approx(float(one[column]), rel=1e-5)

    resumed, uninterrupted = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("parts", "dropout")
    )
    assert resumed["global_step"] == uninterrupted["global_step"] == 4
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(resumed[key], uninterrupted[key], rtol=0, atol=0)
    for rank in (0, 1):
        assert torch.equal(resumed["rng"][rank]["torch"], uninterrupted["rng"][rank]["torch"])
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "dropout")

    longer = tiny_run(tmp_path / "two", text, batch_size=4, accumulation=2, outliers=4, steps=6)
    longer.fit(tmp_path / "two/checkpoints/last.ckpt")  # on one rank, with the same global batch
    assert longer.trainer.global_step == 6
    last = torch.load(tmp_path / "two/checkpoints/last.ckpt", weights_only=True)
    assert len(last["rng"]) == 1

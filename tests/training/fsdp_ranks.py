"""What two ranks do for test_fsdp2.py: several runs in one start of the processes, which costs more than the runs."""

import resource
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy
from tiny_run import Run, tiny_run

from errors import InputError
from training.callbacks.steps import StepCallback
from training.strategies import FullySharded

# What is hard for a sharded model: tied embeddings, parameters of the mechanism, fewer rows (1) than ranks in `prefix`.
OPTIONS = {"attention": "sink_token", "steps": 8, "outliers": 4, "log_every": 1}


class Overflow(StepCallback):
    """From step 2 on the second block's MLP overflows, on rank 1 alone."""

    def on_step_end(self, trainer, module, step):
        if step == 2 and trainer.global_rank == 1:
            module.gpt.blocks[1].mlp.down.register_forward_hook(lambda module, inputs, output: output * torch.inf)


class FullDisk(StepCallback):
    """From step 3 on rank 1 cannot write a file of more than 16 kB."""

    def on_step_end(self, trainer, module, step):
        if step == 3 and trainer.global_rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16384, resource.RLIM_INFINITY))


@contextmanager
def noted(path: Path):
    """Put the message of bad input into a file, and go on."""
    try:
        yield
    except InputError as error:
        path.write_text(str(error))


def two_ranks(folder: Path, text: str, strategy: str = "fsdp2", **options) -> Run:
    made = FullySharded() if strategy == "fsdp2" else DDPStrategy(process_group_backend="gloo")
    return tiny_run(folder, text, strategy=made, devices=2, batch_size=2, **OPTIONS | options)


def main(folder: Path, text: str) -> None:
    dropout = {"network": {"dropout": 0.1}, "accumulation": 2, "weights": 4, "quantization_gap": True}
    two_ranks(folder / "whole", text, **dropout).fit()
    two_ranks(folder / "parts", text, stop_after=5, **dropout).fit()
    # The second half computes every block twice, which changes no number: the masks of dropout are replayed.
    two_ranks(folder / "parts", text, activation_checkpointing=True, **dropout).fit(
        folder / "parts/checkpoints/last.ckpt"
    )

    two_ranks(folder / "ddp", text, "ddp").fit()
    two_ranks(folder / "chain", text, "ddp", stop_after=3).fit()
    two_ranks(folder / "chain", text, stop_after=5).fit(folder / "chain/checkpoints/last.ckpt")

    half = two_ranks(folder / "shards", text, stop_after=5, sharded=True, **dropout).fit()
    if half.trainer.is_global_zero:
        shutil.copytree(folder / "shards/checkpoints", folder / "five", symlinks=True)
    two_ranks(folder / "shards", text, sharded=True, **dropout).fit(folder / "shards/checkpoints/last.ckpt")

    full = two_ranks(folder / "full", text, sharded=True, outliers=0, checkpoints=2, extra=(FullDisk(),))
    with noted(folder / f"full-{half.trainer.global_rank}.txt"):
        full.fit()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    overflowing = two_ranks(folder / "overflow", text, log_every=4, evaluation=0, outliers=0, extra=(Overflow(),))
    with noted(folder / f"overflow-{half.trainer.global_rank}.txt"):
        overflowing.fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""Full checkpoints that resume exactly, and weights alone for analysis."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from errors import InputError
from training import rng
from training.callbacks.steps import StepCallback, due, from_all_ranks, stopping
from training.checkpoint_io import AtomicCheckpointIO
from training.sharded_io import sweep
from training.strategies import FullySharded
from training.weights import save_weights, whole_state


class Checkpoints(StepCallback):
    """Keeps checkpoints/last.ckpt, the one before it as previous.ckpt, and weights as safetensors.

    It stands after all other callbacks: a checkpoint holds the state after its step's evaluation and probe, so that a
    resumed run repeats neither and skips neither. The last step, planned or asked for, is always saved.

    Args:
        every: Optimizer steps between two full checkpoints; 0 for the last step alone.
        weights_every: Optimizer steps between two files weights-step=N.safetensors; 0 for none.
        sharded: Under fsdp2, let every rank write its part into a folder, in place of gathering one file on rank 0.
    """

    def __init__(self, every: int = 500, weights_every: int = 0, sharded: bool = False) -> None:
        for name, value in (("every", every), ("weights_every", weights_every)):
            if value < 0:
                raise InputError(f"checkpoints.{name} is {value}; it is a number of steps, or 0 for none")
        self.every, self.weights_every, self.sharded = every, weights_every, sharded
        self._restored: list[dict[str, Any]] | None = None
        self.saved: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the trainer write and read its checkpoints atomically."""
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if isinstance(trainer.strategy, FullySharded):
            trainer.strategy.sharded_checkpoints = self.sharded

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the random number generators where the checkpoint left them: starting up has drawn from them."""
        super().on_train_start(trainer, pl_module)
        steps = [callback for callback in trainer.callbacks if isinstance(callback, StepCallback)]
        if steps[-1] is not self:
            raise RuntimeError("Checkpoints must be the last callback, after evaluation and probe")
        if self._restored is not None:
            if len(self._restored) == trainer.world_size:
                rng.restore(self._restored[trainer.global_rank])
            else:  # another number of ranks: new dropout streams, but the same ones at every attempt
                rng.seed(pl_module.seed, trainer.global_rank, trainer.global_step)
        if trainer.is_global_zero:
            for path in folder(trainer).glob(".*"):
                path.unlink()
            if folder(trainer).exists():
                sweep(folder(trainer))

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Save where it is due."""
        last = stopping(trainer, step)
        if last or (self.every and step % self.every == 0):
            module.check_finite()
            with module.stopwatch.pause():
                self._save(trainer, step)
        if due(trainer, step, self.weights_every):
            with module.stopwatch.pause():
                state = whole_state(module.gpt)
                if trainer.is_global_zero:
                    description = {"step": step, **module.hparams}
                    save_weights(state, folder(trainer) / f"weights-step={step:06d}.safetensors", description)

    def _save(self, trainer: Trainer, step: int) -> None:
        for logger in trainer.loggers:
            logger.save()  # what the checkpoint follows is on the disk before the checkpoint is
        here = folder(trainer)
        trainer.save_checkpoint(here / "last.ckpt", storage_options={"previous": here / "previous.ckpt"})
        if trainer.is_global_zero:
            sweep(here)
        self.saved = step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add every rank's random number generators."""
        checkpoint["rng"] = from_all_ranks(trainer, rng.state())

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep them until the loaders have started."""
        self._restored = checkpoint.get("rng")


def folder(trainer: Trainer) -> Path:
    """The checkpoints of this run."""
    return Path(trainer.default_root_dir) / "checkpoints"

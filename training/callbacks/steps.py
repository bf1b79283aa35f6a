"""The base of every callback here: one call for each optimizer step."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class StepCallback(Callback):
    """Calls `on_step_end` once for each optimizer step, after its last micro-batch.

    Lightning's own hooks and its `val_check_interval` count micro-batches.
    """

    _seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count where the run begins or resumes."""
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        """Find out whether this micro-batch completed an optimizer step."""
        step = trainer.global_step
        if step != self._seen:
            self._seen = step
            self.on_step_end(trainer, pl_module, step)

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Called with the number of optimizer steps done so far."""


def due(trainer: Trainer, step: int, every: int) -> bool:
    """Whether something happens at this step: each `every` steps (0 for never) and at the last one."""
    return every > 0 and (step % every == 0 or step >= trainer.max_steps)


def stopping(trainer: Trainer, step: int) -> bool:
    """Whether this is the run's last step, by plan or because somebody asked it to stop."""
    return step >= trainer.max_steps or trainer.should_stop


def report(trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
    """Hand numbers to every logger at the same step."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=step)


def from_all_ranks(trainer: Trainer, value: Any) -> list[Any]:
    """This rank's value and those of the others, by rank. All ranks call it."""
    values = [value] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values

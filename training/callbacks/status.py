"""status.json: how far the run is, for those who look at it from outside."""

import time
from contextlib import suppress

from lightning.pytorch import LightningModule, Trainer

from errors import Interrupted
from training.callbacks.steps import StepCallback
from training.run_directory import RunDirectory

SECONDS = 5.0  # between two writes


class StatusFile(StepCallback):
    """Writes `running`, and at the end `finished`, `stopped` (a signal, --stop_after) or `failed`.

    The last word comes after the last checkpoint, so that `finished` is never written of a run that is not saved.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self._next = 0.0
        self._training = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that it runs."""
        super().on_train_start(trainer, pl_module)
        self._training = True
        self._write(trainer, "running")

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Say how far it is, now and then."""
        if time.monotonic() >= self._next:
            self._write(trainer, "running")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how it ended."""
        self._write(trainer, "finished" if trainer.global_step >= trainer.max_steps else "stopped")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say that it failed or was stopped, if the disk still takes it: the exception itself matters more.

        Before the first step the count of steps is not restored yet, so what an earlier start wrote stays.
        """
        if self._training or self.directory.status() is None:
            with suppress(OSError):
                self._write(trainer, "stopped" if isinstance(exception, Interrupted) else "failed")

    def _write(self, trainer: Trainer, state: str) -> None:
        self._next = time.monotonic() + SECONDS
        if trainer.is_global_zero:
            self.directory.write_status(state, trainer.global_step, trainer.max_steps)

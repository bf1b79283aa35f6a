"""Python's garbage collector, kept out of the steps."""

import gc

from lightning.pytorch import LightningModule, Trainer

from training.callbacks.steps import StepCallback


class CollectGarbage(StepCallback):
    """Collects where numbers are reported, every `trainer.log_every_n_steps` steps, and nowhere else.

    An automatic collection comes at another step on every rank, and all ranks wait for the slowest. What exists when
    training begins is frozen, so that a collection walks over what came after it alone. Both end with the training.
    """

    def __init__(self) -> None:
        self._was_enabled: bool | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect once, freeze what is left, and stop automatic collections."""
        super().on_train_start(trainer, pl_module)
        self._was_enabled = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Collect where it is due; all ranks at the same step."""
        if step % trainer.log_every_n_steps == 0:
            gc.collect()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the collector back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the collector back."""
        self._restore()

    def _restore(self) -> None:
        if self._was_enabled is None:
            return
        gc.unfreeze()
        if self._was_enabled:
            gc.enable()
        self._was_enabled = None

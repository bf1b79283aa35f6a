"""How far the run is: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer

from training.callbacks.metrics import mfu_at_one, peak_memory
from training.callbacks.steps import StepCallback, stopping

if TYPE_CHECKING:
    from rich.progress import Progress

LINE = 10.0  # seconds between two lines where there is no terminal


class ShowProgress(StepCallback):
    """Steps, tokens/s, MFU where it is known, peak memory and time left; no number of it waits for the device."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._first = 0
        self._mfu: float | None = None
        self._next = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar, or say what begins."""
        super().on_train_start(trainer, pl_module)
        self._first, self._next = trainer.global_step, time.monotonic() + LINE
        self._mfu = mfu_at_one(trainer, pl_module)
        if trainer.is_global_zero and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("step", total=trainer.max_steps, completed=trainer.global_step, speed="")

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Move the bar, or print a line when it is time."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=step, speed=self._speed(trainer, module, step))
        elif trainer.is_global_zero and (now >= self._next or stopping(trainer, step)):
            self._next = now + LINE
            left = module.stopwatch.left(step - self._first, trainer.max_steps - step)
            print(
                f"step {step}/{trainer.max_steps}  {self._speed(trainer, module, step)}  "
                f"{timedelta(seconds=round(left))} left",
                file=sys.stderr,
                flush=True,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away."""
        self._close()

    def _speed(self, trainer: Trainer, module: LightningModule, step: int) -> str:
        tokens = (step - self._first) * trainer.datamodule.tokens_per_step
        speed = tokens / max(module.stopwatch.training_seconds(), 1e-9)
        share = "" if self._mfu is None else f"  MFU {self._mfu * speed:.1%}"
        return f"{speed:,.0f} tokens/s{share}  {peak_memory(module.device):.1f} GiB"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

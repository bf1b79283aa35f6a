"""Stopping on purpose: a signal, or a step to stop after. Always at an optimizer step's boundary."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from errors import InputError
from training.callbacks.steps import StepCallback
from training.common_stop import STOPPING
from training.ranks import Ranks

# SIGUSR1 is what `sbatch --signal=USR1@60` sends a minute before a job's time is over.
CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop(StepCallback):
    """Ends the run after the current optimizer step when a signal came or step `after` is reached; it is saved then.

    Handlers only set a flag: Lightning's own leave without saving and with exit code 0, and an exception in the middle
    of an accumulation could not be resumed exactly. A second signal leaves at once; the last checkpoint stays whole.

    Args:
        after: Optimizer step to stop at, as if interrupted there; None for the end of the run.
        ranks: The other ranks, which stop at the same step; None where this process trains alone.
    """

    def __init__(self, after: int | None = None, ranks: Ranks | None = None) -> None:
        if after is not None and after < 1:
            raise InputError(f"stop_after is {after}; it is a number of steps, 1 or more")
        self.after, self.ranks = after, ranks
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 + the signal that ended the run (143 for SIGTERM, 130 for SIGINT, 138 for SIGUSR1), otherwise 0."""
        number = self.ranks.stop.signal if self.ranks else self.signal
        return 128 + number if number else 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Switch off what Lightning does about signals.

        Its handler leaves without saving, and on several ranks it waits in every micro-batch for the device, to
        broadcast whether SIGTERM came.
        """
        trainer._signal_connector.register_signal_handlers = lambda: None
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put our handlers in place."""
        super().on_train_start(trainer, pl_module)
        self.signal = None
        if self.ranks:
            self.ranks.stop.begin(trainer.global_step)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in CAUGHT}

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Ask the trainer to stop where it is time; all ranks at the same step."""
        signalled = self.ranks.stop.after(step) if self.ranks else self.signal is not None
        if signalled or step == self.after:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the handlers back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the handlers back, and tell the other ranks."""
        self._restore()
        if self.ranks:
            self.ranks.tell(exception)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if self.ranks:
                self.ranks.leave_at_once(number)
            os._exit(128 + number)
        self.signal = signal.Signals(number)
        if self.ranks:
            self.ranks.stop.ask(number)
        else:
            sys.stderr.write(STOPPING.format(self.signal.name))

"""`fit` without its command line: the Trainer, the module, the data and the callbacks that act at every step.

What benchmarks/gpu.py measures of the Trainer: its speed, and whether the host waits for the device; and what ends a
longer training when the time of a call is over.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.cases import Call
from benchmarks.gpt2 import WINDOW, Setting
from training import loggers
from training.assembly import FIXED
from training.callbacks.metrics import TrainingMetrics
from training.callbacks.signals import Stop
from training.callbacks.steps import StepCallback
from training.data_module import CorpusData
from training.module import LanguageModel


class Deadline(StepCallback):
    """Stops the training after the step at which the call's time is over; what was trained is saved then."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Look at the clock."""
        if self.call.over:
            trainer.should_stop = True


class Watch(Callback):
    """Lets torch warn of every wait of the host for the device, but for the logging steps and what comes before them.

    The first window is left out: it compiles. Must be the first callback, so that a step's logging comes after it.
    """

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Watch from the start of the step after a logging step."""
        if torch.cuda.is_available() and trainer.global_step >= trainer.log_every_n_steps:
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look away where the step's numbers are about to be read."""
        if torch.cuda.is_available() and trainer.global_step % trainer.log_every_n_steps == 0:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def waits() -> Iterator[list[str]]:
    """The places (file:line) at which torch warned of a wait, filled in at the end."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation.*")
        yield found
        found += [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchronizing CUDA" in str(w.message)]


def fit(chosen: Setting, device: str, folder: Path) -> list[str]:
    """Train softmax and write `folder`/metrics.csv; return where the host waited between logging steps."""
    on_gpu = device == "cuda"
    data = CorpusData(
        "stdlib",
        "bytes",
        folder=str(folder / "data"),
        context=chosen.network.context,
        batch_size=chosen.batch,
        workers=2 if on_gpu else 0,
    )
    module = LanguageModel("softmax", chosen.network, compile="true" if on_gpu else "false")
    trainer = Trainer(
        accelerator=device,
        devices=1,
        precision="bf16-mixed" if on_gpu else "32-true",
        max_steps=chosen.steps,
        log_every_n_steps=WINDOW,
        gradient_clip_val=1.0,
        logger=loggers.build([], folder),
        callbacks=[Watch(), TrainingMetrics(), Stop(None)],
        default_root_dir=folder,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **FIXED,
    )
    with waits() as found:
        trainer.fit(module, data)
    return found

"""What training itself reports: loss, gradient norm, rate, tokens, speed, utilisation, memory, time left."""

import resource
import statistics
import sys
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from models.flops import flops_per_token
from training.callbacks.steps import StepCallback, from_all_ranks, report, stopping
from training.loggers import MetricsCSV
from training.peaks import device_peak


class TrainingMetrics(StepCallback):
    """Reports every `trainer.log_every_n_steps` optimizer steps and at the last one.

    train/loss is the mean over all steps since the last report, summed on the device: the host waits for it only when
    it reports. The sum of each rank is part of the checkpoint, so that a resumed run reports the same numbers.
    """

    def __init__(self) -> None:
        self._first = 0
        self._mfu: float | None = None
        self._sum: torch.Tensor | None = None
        self._steps = 0
        self._mark = (0, 0.0)
        self._restored: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut `metrics.csv` to the step at which the run goes on, and start the clock."""
        super().on_train_start(trainer, pl_module)
        step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.cut(step if trainer.ckpt_path else -1)
        self._sum = torch.zeros((), device=pl_module.device)
        if sums := self._restored.get("sums"):
            # Another number of ranks: each gets the mean, whose mean is the same.
            same = len(sums) == trainer.world_size
            self._sum += sums[trainer.global_rank] if same else statistics.fmean(sums)
        self._steps = self._restored.get("steps", 0)
        pl_module.stopwatch.start(self._restored.get("seconds", 0.0))
        self._first, self._mark = step, (step, 0.0)
        self._mfu = mfu_at_one(trainer, pl_module)
        if step == 0:
            report(trainer, 0, {"tokens": 0, "learning_rate": pl_module.rate(0)})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add this micro-batch's loss, which Lightning has divided by the accumulation, on the device."""
        self._sum += outputs["loss"]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Report where it is due."""
        self._steps += 1
        if step % trainer.log_every_n_steps and not stopping(trainer, step):
            return
        module.check_finite()
        loss = trainer.strategy.reduce(self._sum / self._steps, reduce_op="mean").item()
        self._sum.zero_()
        self._steps = 0
        seconds = module.stopwatch.training_seconds()
        steps, elapsed = step - self._mark[0], seconds - self._mark[1]
        self._mark = (step, seconds)
        tokens = trainer.datamodule.tokens_per_step
        speed = steps * tokens / elapsed
        spikes = module.guard.spikes
        report(
            trainer,
            step,
            {
                "tokens": step * tokens,
                "train/loss": loss,
                "train/grad_norm": module.gradient_norm.item(),
                "learning_rate": module.rate(step - 1),
                **({} if spikes is None else {"train/skipped": spikes.skipped.item()}),
                "time/seconds": module.stopwatch.seconds(),
                "time/left_seconds": module.stopwatch.left(step - self._first, trainer.max_steps - step),
                "time/tokens_per_second": speed,
                **({} if self._mfu is None else {"time/mfu": self._mfu * speed}),
                "time/peak_memory_gib": peak_memory(module.device),
            },
        )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the sum since the last report, and the clock."""
        checkpoint["training_metrics"] = {
            "sums": from_all_ranks(trainer, self._sum.item()),
            "steps": self._steps,
            "seconds": pl_module.stopwatch.seconds(),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        self._restored = checkpoint.get("training_metrics", {})


def mfu_at_one(trainer: Trainer, module: LightningModule) -> float | None:
    """Model FLOP utilisation at one token a second: FLOPs of a token over the peak of all devices; None where no peak
    is known."""
    peak = device_peak(module.device, str(trainer.precision))
    return peak and flops_per_token(module.gpt, trainer.datamodule.context) / (peak * trainer.world_size)


def peak_memory(device: torch.device) -> float:
    """GiB: allocated by torch on a GPU, resident in this process on the CPU; the largest so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**30 if sys.platform == "darwin" else 2**20)

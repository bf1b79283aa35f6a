"""The outlier probe: the same held-out tokens through the present weights, every N optimizer steps."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer

import outliers
from errors import InputError
from models import GPT
from outliers.access.ours import decoder_of
from outliers.compression.study import w8a8_gap
from outliers.table import Rows, write
from training import rng
from training.callbacks.steps import StepCallback, due, report
from training.weights import whole_state


class OutlierProbe(StepCallback):
    """Measures outliers and attention sinks at step 0, every `every` steps and at the last step.

    One file a probe: probes/step=000100.parquet. At step 0 and at the last step random tokens are measured too (the
    null), and the last step leaves one sentence's block outputs in probes/sentence.npz. The headline numbers go to the
    loggers as outliers/<name>.

    Args:
        every: Optimizer steps between two probes; 0 for none. A probe costs less than a training step of as many
            sequences.
        sequences: Held-out sequences in the probe batch.
        quantization_gap: Log what 8 bits cost, too (`w8a8 absmax` of docs/compression.md). It takes longer than the
            probe itself, and the weights' memory once more on every device.
    """

    def __init__(self, every: int = 200, sequences: int = 16, quantization_gap: bool = False) -> None:
        if every < 0:
            raise InputError(f"outliers.every is {every}; it is a number of steps, or 0 for never")
        if sequences < 1:
            raise InputError(f"outliers.sequences is {sequences}; the probe needs at least 1")
        if quantization_gap and sequences < 2:
            raise InputError("outliers.quantization_gap needs outliers.sequences of at least 2: one of them calibrates")
        self.every, self.sequences, self.quantization_gap = every, sequences, quantization_gap
        self._probe: Any = None
        self._copy: GPT | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the tokens, drop what an interrupted run measured after its checkpoint, probe the initial weights."""
        super().on_train_start(trainer, pl_module)
        if not self.every:
            return
        step = trainer.global_step
        if trainer.is_global_zero:
            drop_after(folder(trainer), step if trainer.ckpt_path else -1)
        data, device = trainer.datamodule, pl_module.device
        first_key = data.probe_first_key(self.sequences)
        if self.quantization_gap and first_key is not None:
            raise InputError("outliers.quantization_gap is not measured with data.documents masked; turn one off")
        self._probe = outliers.Probe(
            pl_module.gpt,
            data.probe_tokens(self.sequences).to(device),
            first_key_BT=None if first_key is None else first_key.to(device),
            random_tokens_BT=data.random_tokens(self.sequences).to(device),
        )
        if step == 0:
            self._measure(trainer, pl_module, 0)

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Probe where it is due."""
        if due(trainer, step, self.every):
            module.check_finite()
            self._measure(trainer, module, step)

    def _measure(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        ends = step in (0, trainer.max_steps)
        extra = {
            "tokens": step * trainer.datamodule.tokens_per_step,
            "learning_rate": module.rate(max(step - 1, 0)),
        }
        # The probe itself sees to evaluation mode, no gradient and eager execution.
        with module.stopwatch.pause() as pause, rng.preserved(), trainer.precision_plugin.val_step_context():
            table = self._probe.measure(step, inputs="probe", extra=extra)
            found = outliers.headlines(table)
            tables = [table]
            if self.quantization_gap:
                found["quantization_gap"], found["quantization_gap_error"] = gap, error = self._gap(trainer, module)
                rows = Rows()
                rows.add("quantization_gap", gap)
                rows.add("quantization_gap", error, statistic="standard_error")
                tables.append(rows.table(step, "probe", extra))
            if ends:
                tables.append(self._probe.measure(step, inputs="random", extra=extra))
            if trainer.is_global_zero:
                write(folder(trainer) / f"step={step:06d}.parquet", *tables)
            if step == trainer.max_steps:
                self._save_sentence(trainer, module)
        # NaN is a headline that this attention does not let us measure: an absent number, not a bad one.
        logged = {f"outliers/{name}": value for name, value in found.items() if not math.isnan(value)}
        report(trainer, step, {**logged, "time/probe_seconds": pause.seconds})

    def _gap(self, trainer: Trainer, module: LightningModule) -> tuple[float, float]:
        """The gap and its standard error, on a copy: compressed weights never stand where training could meet them,
        and a sharded network is measured like any other."""
        state = whole_state(module.gpt)  # on every rank
        if self._copy is None:
            made = GPT(module.network, module.attention, backend=module.backend)
            self._copy = made.to(module.device, next(module.gpt.parameters()).dtype)
        self._copy.load_state_dict(state)
        return w8a8_gap(decoder_of(self._copy), trainer.datamodule.probe_tokens(self.sequences))

    def _save_sentence(self, trainer: Trainer, module: LightningModule) -> None:
        tokens_T, texts, first_key_T = trainer.datamodule.sentence()
        if first_key_T is not None:
            first_key_T = first_key_T.to(module.device)
        # On every rank: weights may be sharded.
        arrays = outliers.sentence(module.gpt, tokens_T.to(module.device), first_key_T)
        if not trainer.is_global_zero:
            return
        path = folder(trainer) / "sentence.npz"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays, texts=np.array(texts))
        os.replace(temporary, path)


def folder(trainer: Trainer) -> Path:
    """The probes of this run."""
    return Path(trainer.default_root_dir) / "probes"


def drop_after(probes: Path, step: int) -> None:
    """Delete the probes of later steps, and what an interrupted write left."""
    for path in probes.glob("step=*.parquet"):
        if int(path.stem.removeprefix("step=")) > step:
            path.unlink()
    for path in probes.glob(".*"):
        path.unlink()

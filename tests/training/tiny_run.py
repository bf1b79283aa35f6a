"""A real Trainer, module, corpus and all callbacks, small enough for a test."""

import csv
import random
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from models import GPTConfig
from training import loggers
from training.callbacks.checkpoints import Checkpoints
from training.callbacks.evaluation import Evaluation
from training.callbacks.metrics import TrainingMetrics
from training.callbacks.outlier_probe import OutlierProbe
from training.callbacks.signals import Stop
from training.data_module import CorpusData
from training.module import LanguageModel
from training.optimizers import OptimizerConfig
from training.schedules import ScheduleConfig

warnings.filterwarnings("ignore", message=".*does not have many workers.*")

CONTEXT = 16


@dataclass
class Run:
    trainer: Trainer
    module: LanguageModel
    data: CorpusData
    stop: Stop

    def fit(self, resume: Path | str | None = None) -> "Run":
        self.trainer.fit(self.module, self.data, ckpt_path=resume)
        return self


def write_text(path: Path) -> Path:
    """Words with some structure, about 30 kB."""
    draw = random.Random(0)
    words = ["".join(draw.choice("etaoinshr") for _ in range(draw.randint(2, 7))) for _ in range(60)]
    path.write_text("\n".join(" ".join(draw.choice(words) for _ in range(9)) for _ in range(600)))
    return path


def tiny_run(
    folder: Path,
    source: Path | str,
    *,
    steps: int = 6,
    attention: Any = "softmax",
    network: dict[str, Any] | None = None,
    rate: float = 3e-3,
    optimizer: OptimizerConfig | None = None,
    batch_size: int = 4,
    accumulation: int = 1,
    workers: int = 0,
    evaluation: int = 3,
    outliers: int = 0,
    quantization_gap: bool = False,
    checkpoints: int = 3,
    weights: int = 0,
    stop_after: int | None = None,
    log_every: int = 2,
    compile: str = "false",
    seed: int = 0,
    activation_checkpointing: bool = False,
    sharded: bool = False,
    extra: tuple = (),
    data: dict[str, Any] | None = None,
    **trainer: Any,
) -> Run:
    sizes = {"context": CONTEXT, "layers": 2, "heads": 2, "width": 16} | (network or {})
    module = LanguageModel(
        attention,
        GPTConfig(**sizes),
        optimizer or OptimizerConfig(lr=rate),
        ScheduleConfig("cosine", warmup=2),
        compile=compile,
        seed=seed,
        activation_checkpointing=activation_checkpointing,
    )
    corpus = CorpusData(
        str(source),
        "bytes",
        folder=str(Path(folder).parent / "data"),
        context=CONTEXT,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        validation_sequences=10,
        **(data or {}),
    )
    stop = Stop(stop_after)
    callbacks = [
        *extra,
        TrainingMetrics(),
        Evaluation(evaluation),
        OutlierProbe(outliers, sequences=2, quantization_gap=quantization_gap),
        stop,
        Checkpoints(checkpoints, weights, sharded),
    ]
    settings = {
        "logger": loggers.build([], folder),
        "gradient_clip_val": 1.0,
        "accelerator": "cpu",
        "devices": 1,
        "limit_val_batches": 0,
    } | trainer
    made = Trainer(
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulation,
        default_root_dir=folder,
        callbacks=callbacks,
        log_every_n_steps=log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    return Run(made, module, corpus, stop)


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without its time columns, numbers as they are written."""
    with open(Path(folder) / "metrics.csv", newline="") as file:
        return [
            {key: value for key, value in row.items() if not key.startswith("time/")} for row in csv.DictReader(file)
        ]


def tensors(run: Run) -> dict[str, torch.Tensor]:
    """Weights and optimizer state by name."""
    found = {name: tensor.clone() for name, tensor in run.module.state_dict().items()}
    for number, state in enumerate(run.trainer.optimizers[0].state.values()):
        found |= {f"optimizer.{number}.{name}": value.clone() for name, value in state.items()}
    return found


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not the same bit for bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]

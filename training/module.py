"""One GPT in training: loss, optimizer step, validation sums, checkpoint contents.

Shapes: B sequences of a micro-batch, T tokens, V vocabulary. A batch is {"inputs": (B, T), "targets": (B, T)} int64,
and "first_key": (B, T) int32 where documents are masked; a target of -100 is ignored. An optimizer step sees
`accumulation × world` micro-batches.
"""

import math
from dataclasses import asdict, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from errors import InputError
from kernels import Parts
from kernels.backends import obstacle
from models import GPT, GPTConfig
from models.attention import normalise
from training import compilation, optimizers, rng
from training.callbacks.steps import from_all_ranks
from training.guard import NonFiniteError, NonFiniteGuard, agreed, locate
from training.loss import IGNORED, nats, nats_to_compile
from training.optimizers import OptimizerConfig
from training.resume import rewrite_counters
from training.schedules import ScheduleConfig, factor
from training.spikes import Spikes
from training.stopwatch import Stopwatch
from training.strategies import FullySharded

# Lightning's name of a precision, and the dtype in which attention then computes.
PRECISIONS = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "64-true": torch.float64,
}

Batch = dict[str, Tensor]


class LanguageModel(LightningModule):
    """A GPT with its attention mechanism, optimizer and schedule.

    Args:
        attention: A mechanism's name, the import path of a class, or {name: …, option: value}.
        network: The GPT's sizes; `vocab_size` may be left to the corpus.
        optimizer: Optimizer and its constants.
        schedule: Learning rate over the steps.
        compile: Compile the blocks in place: auto (where a compiler is there), true or false.
        backend: Of `kernels.attend`: auto, vendor, triton, blockwise or reference.
        seed: Of the initial values and of dropout.
        activation_checkpointing: Compute each block again in the backward, in place of keeping what it computed.
    """

    def __init__(
        self,
        attention: str | dict[str, Any] = "softmax",
        network: GPTConfig = GPTConfig(),  # noqa: B008 (frozen)
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        compile: str | bool = "auto",
        backend: str = "auto",
        seed: int = 0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        # A checkpoint brings dictionaries.
        self.network = GPTConfig(**network) if isinstance(network, dict) else network
        self.optimizer_config = OptimizerConfig(**optimizer) if isinstance(optimizer, dict) else optimizer
        self.schedule = ScheduleConfig(**schedule) if isinstance(schedule, dict) else schedule
        self.attention = normalise(attention)
        self.compile_choice, self.backend, self.seed = str(compile).lower(), backend, seed
        self.activation_checkpointing = activation_checkpointing
        compilation.check(self.compile_choice)
        self.network.validate()
        self.optimizer_config.validate()
        self.schedule.validate()
        self.stopwatch = Stopwatch()
        self.guard: NonFiniteGuard | None = None
        self.gradient_norm: Tensor | None = None
        self._spikes_before: dict[str, Any] | None = None
        self._trained: list[Tensor] = []
        self._compiled = False
        self._nats = nats
        self._sums_3 = torch.zeros(3, dtype=torch.float64)
        self._describe()
        if self.network.vocab_size is not None:
            self._build()

    def _describe(self) -> None:
        # Plain values: they load with weights_only=True, and __init__ takes them back.
        values = {
            "attention": self.attention,
            "network": asdict(self.network),
            "optimizer": asdict(self.optimizer_config),
            "schedule": asdict(self.schedule),
            "compile": self.compile_choice,
            "backend": self.backend,
            "seed": self.seed,
            "activation_checkpointing": self.activation_checkpointing,
        }
        self.save_hyperparameters(values)

    def _build(self) -> None:
        self.gpt = GPT(
            self.network,
            self.attention,
            seed=self.seed,
            backend=self.backend,
            activation_checkpointing=self.activation_checkpointing,
        )

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V)."""
        return self.gpt(tokens_BT)

    def loss_sum(self, batch: Batch) -> Tensor:
        """Sum over valid targets of −log p, in nats; at least in fp32, whatever the autocast."""
        logits_BTV = self.gpt(batch["inputs"], batch.get("first_key"), padded=True)
        return self._nats(logits_BTV, batch["targets"], self.network.vocab_size)

    # Set-up.

    def setup(self, stage: str) -> None:
        """Take the vocabulary from the corpus, and refuse what would fail or mislead later."""
        data = self.trainer.datamodule
        if data is not None:
            self._fit_to(data.corpus.vocab_size, data.context)
        if not hasattr(self, "gpt"):
            raise InputError("model.network.vocab_size is not set, and there is no corpus to take it from")
        # Lightning restores a checkpoint before it converts the module: under 64-true that would round the weights.
        self.trainer.precision_plugin.convert_module(self.gpt)
        if stage != "fit":
            return
        if self.trainer.max_steps < 1:
            raise InputError(f"trainer.max_steps is {self.trainer.max_steps}; give the number of optimizer steps")
        precision = str(self.trainer.precision)
        if precision not in PRECISIONS:
            raise InputError(f"trainer.precision {precision!r} is not supported; it is one of {', '.join(PRECISIONS)}")
        if self.trainer.gradient_clip_algorithm not in (None, "norm"):
            raise InputError("trainer.gradient_clip_algorithm: gradients are clipped by norm alone")
        # Asked for by name, a back end would refuse at the first batch, as a fault.
        device = self.trainer.strategy.root_device
        row = torch.empty(1, 1, 1, self.network.head_dim, dtype=PRECISIONS[precision], device=device)
        masked = data is not None and data.layout.documents == "masked"
        first_key = torch.zeros(1, 1, dtype=torch.int32, device=device) if masked else None
        reason = obstacle(self.backend, row, row, Parts(), first_key)
        if reason is not None:
            raise InputError(f"model.backend is {self.backend}, which cannot compute {reason}; auto can")

    def _fit_to(self, vocab_size: int, context: int) -> None:
        if self.network.vocab_size is None:
            self.network = replace(self.network, vocab_size=vocab_size)
            self._describe()
            self._build()
        elif self.network.vocab_size < vocab_size:
            raise InputError(
                f"model.network.vocab_size is {self.network.vocab_size}, but the corpus has {vocab_size} tokens; "
                "leave it out to take the corpus's"
            )
        if context > self.network.context:
            raise InputError(f"data.context is {context}, longer than model.network.context {self.network.context}")

    def configure_model(self) -> None:
        """Compile the blocks in place, and the loss, which has no weights; then, and not before, shard the blocks."""
        if self._trainer is None:
            return
        strategy = self.trainer.strategy
        wanted = self.trainer.training and not self._compiled
        if wanted and compilation.wanted(self.compile_choice, strategy.root_device):
            compilation.compile_blocks(self.gpt.blocks)
            self._nats = compilation.compiled(nats_to_compile)
            self._compiled = True
        if isinstance(strategy, FullySharded) and not isinstance(self.gpt, FSDPModule):
            strategy.shard(self.gpt)

    def configure_optimizers(self) -> Optimizer:
        """The optimizer; its rate is set before each update, so no scheduler object has a state that could be stale."""
        # Taken here: after a forward pass a sharded module may hold gathered weights in their place.
        self._trained = [parameter for parameter in self.gpt.parameters() if parameter.requires_grad]
        return optimizers.build(self.optimizer_config, self.gpt)

    def on_train_start(self) -> None:
        """Begin with the guard down, the configured constants, and a dropout stream of this rank's own."""
        spikes = None
        if self.optimizer_config.skip_spikes is not None:
            spikes = Spikes(self.optimizer_config.skip_spikes, self.device)
            if self._spikes_before is not None:
                spikes.load_state_dict(self._spikes_before)
        self.guard = NonFiniteGuard(self.device, self.trainer.global_step, spikes)
        optimizers.restate(self.optimizer_config, self.trainer.optimizers[0])
        if self.trainer.global_step == 0:
            rng.seed(self.seed, self.trainer.global_rank)

    # One step.

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a micro-batch: its sum × accumulation × world / valid tokens of the whole optimizer step.

        Lightning divides by the accumulation and the strategy averages over ranks, so that the gradient is that of the
        mean over the step's tokens. A training window holds no ignored target: the step's tokens are counted, not read.
        """
        return self.loss_sum(batch) / batch["targets"].numel()

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Once an update, between backward and the optimizer: set the rate, clip, raise the guard's flag."""
        optimizers.set_rate(optimizer, self.rate(self.trainer.global_step))
        self.gradient_norm = optimizers.gradient_norm(self._trained, gradient_clip_val)
        self.guard.observe(self.gradient_norm, optimizer)

    def rate(self, step: int) -> float:
        """Learning rate of the update from `step` to `step + 1`."""
        return self.optimizer_config.lr * factor(self.schedule, step, self.trainer.max_steps)

    def check_finite(self) -> None:
        """Read the guard; NonFiniteError with the step and the layer if any update since the start was not finite."""
        step = None if self.guard is None else self.guard.bad_step()
        if step is None:
            return
        data, context = self.trainer.datamodule, self.trainer.precision_plugin.train_step_context

        def losses():
            for batch in data.step_batches(step):
                with context():
                    yield self.loss_sum({name: tensor.to(self.device) for name, tensor in batch.items()})

        where = agreed(from_all_ranks(self.trainer, locate(self.gpt, losses)))
        where = where or "but a replay of its batches met none (dropout draws other masks)"
        raise NonFiniteError(
            f"step {step + 1} met a number that is not finite, first {where}; weights are those of step {step}. "
            f"A lower model.optimizer.lr (now {self.optimizer_config.lr:g}) or a longer warm-up may help"
        )

    # Validation: sums and counts, so that neither the batch size nor the number of ranks matters.

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add this batch to the sums of loss, targets and bytes, on the device: the host does not wait for it."""
        targets = batch["targets"]
        valid = targets != IGNORED
        token_bytes = self.trainer.datamodule.token_bytes
        size = torch.zeros((), device=targets.device)
        if token_bytes is not None:
            size = torch.where(valid, token_bytes[torch.where(valid, targets, 0)], 0).sum()
        sums = torch.stack([part.double() for part in (self.loss_sum(batch), valid.sum(), size)])
        self._sums_3 = self._sums_3.to(sums.device) + sums

    def validation_metrics(self) -> dict[str, float]:
        """Loss per token in nats, and bits per byte where tokens have bytes; reduced over ranks, and reset.

        bits per byte = Σ loss / (ln 2 · bytes of the targets): comparable between tokenizers.
        """
        loss, count, size = self.trainer.strategy.reduce(self._sums_3.to(self.device), reduce_op="sum").tolist()
        self._sums_3.zero_()
        metrics = {"validation/loss": loss / count}
        if size > 0:
            metrics["validation/bits_per_byte"] = loss / (math.log(2) * size)
        return metrics

    def on_validation_epoch_end(self) -> None:
        """`validate` alone: hand the metrics to Lightning, which prints them."""
        self.log_dict(self.validation_metrics())

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what decides about spikes."""
        if self.guard is not None and self.guard.spikes is not None:
            checkpoint["spikes"] = self.guard.spikes.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Start between two batches, at global_step × accumulation of this run.

        InputError: the checkpoint has another vocabulary or, for training, another optimizer.
        """
        there, here = checkpoint["hyper_parameters"]["network"]["vocab_size"], self.network.vocab_size
        if there != here:
            raise InputError(f"the checkpoint has a vocabulary of {there} tokens, the corpus one of {here}")
        if self._trainer is not None and self.trainer.training:
            name = checkpoint["hyper_parameters"]["optimizer"]["name"]
            if name != self.optimizer_config.name:  # the state of one optimizer means nothing to another
                raise InputError(f"model.optimizer.name is {name} in the checkpoint, {self.optimizer_config.name} here")
            self._spikes_before = checkpoint.get("spikes")
            rewrite_counters(checkpoint, self.trainer.accumulate_grad_batches)

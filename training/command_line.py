"""LightningCLI as sinkless uses it: it parses and checks a command line, and makes the objects of a run."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.seed import seed_everything
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from errors import InputError
from models.attention import AttentionShape, build, label, normalise
from training import loggers
from training.arguments import default_out, split, with_options
from training.assembly import FIXED, callbacks
from training.callbacks.checkpoints import Checkpoints
from training.callbacks.evaluation import Evaluation
from training.callbacks.outlier_probe import OutlierProbe
from training.callbacks.signals import Stop
from training.data_module import CorpusData
from training.launch import cluster_environment
from training.module import LanguageModel
from training.muon import SHARDED
from training.parser import Parser, check_config_file
from training.ranks import Ranks
from training.run_directory import RunDirectory
from training.split import Split, accumulation
from training.strategies import FullySharded, resolve

# All Trainer arguments that are no options, for the reason that assembly.py gives.
ABSENT = {
    *FIXED,
    *("default_root_dir", "logger", "fast_dev_run", "barebones", "min_epochs", "min_steps", "max_time"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches"),
    *("val_check_interval", "check_val_every_n_epoch", "reload_dataloaders_every_n_epochs", "inference_mode"),
    *("gradient_clip_algorithm", "sync_batchnorm", "model_registry", "enable_autolog_hparams", "enable_progress_bar"),
}
# What a command line says about this start alone; config.yaml does not hold it.
OF_THIS_START = ("config", "out", "stop_after", "ckpt_path", "rank_timeout")


@dataclass(frozen=True)
class Plan:
    """A command line, resolved and checked.

    config: what config.yaml holds: plain dicts, lists, strings and numbers, the attention in its canonical form.
    split: how this start splits the global batch. out: the run directory. checkpoint: `--ckpt_path` as given.
    stop_after: the optimizer step to stop at, or None.
    """

    config: dict[str, Any]
    split: Split
    out: Path
    checkpoint: str | None
    stop_after: int | None


class CommandLine(LightningCLI):
    """LightningCLI that only parses when it is made; `trainer`, `model` and `datamodule` come from `make`.

    Args:
        command: fit, validate or doctor.
        argv: The command line after the command.
    """

    def __init__(self, command: Literal["fit", "validate", "doctor"], argv: list[str]) -> None:
        self.command = command
        self.words = split(argv)
        super().__init__(
            LanguageModel,
            CorpusData,
            save_config_callback=None,
            parser_class=Parser,
            parser_kwargs={"prog": f"train.py {command}", "description": None},
            args=self.words.rest,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed, and what concerns this start of a run alone."""
        parser.add_argument(
            "--seed_everything", type=int, default=0, help="Seed of the initial values, the data's order and dropout."
        )
        parser.add_argument("--out", type=str | None, default=None, help="Run directory.")
        parser.add_argument(
            "--rank_timeout",
            type=float,
            default=600.0,
            help="Seconds that a rank waits for the others in one operation.",
        )
        if self.command != "validate":
            parser.add_argument("--stop_after", type=int | None, default=None, help="Stop and save at this step.")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None if self.command == "fit" else "last",
            help="Checkpoint to start from: `last`, or a file.",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Trainer, model and data."""
        parser.add_class_arguments(
            Trainer,
            "trainer",
            skip={*ABSENT, "precision", "accumulate_grad_batches"},
            instantiate=False,
            fail_untyped=False,
            sub_configs=True,
        )
        parser.add_argument(
            "--trainer.accumulate_grad_batches",
            type=int | None,
            default=None,
            help="Micro-batches in an optimizer step; null: 1, or what data.tokens_per_step takes.",
        )
        parser.add_argument(
            "--trainer.precision",
            type=Literal["32-true", "bf16-mixed", "bf16-true", "64-true"] | None,
            default=None,
            help="Of weights and arithmetic; null: 32-true.",
        )
        parser.set_defaults(
            {"trainer.max_steps": 1000, "trainer.gradient_clip_val": 1.0, "trainer.log_every_n_steps": 10}
            | {"trainer.enable_model_summary": False}
        )
        parser.add_lightning_class_args(LanguageModel, "model")
        parser.add_lightning_class_args(CorpusData, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The callbacks' groups, the loggers, and what follows from something else."""
        parser.add_lightning_class_args(Evaluation, "evaluation")
        parser.add_lightning_class_args(OutlierProbe, "outliers")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_argument(
            "--loggers",
            type=list[Literal["wandb", "tensorboard"]],
            default=[],
            help="Loggers beside metrics.csv.",
        )
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("model.network.context", "data.context")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read the configuration files once for their mistakes, then parse, and put the attention in canonical form."""
        for file in self.words.configs:
            check_config_file(file, parser)
        self.config = parser.parse_args(args)
        self.config.model.attention = normalise(with_options(self.config.model.attention, self.words.attention))

    def instantiate_classes(self) -> None:
        """Nothing yet: the checks and the data come first."""

    def _set_seed(self) -> None:
        """Nothing yet: `check` leaves the random number generators alone."""

    def plan(self) -> Plan:
        """Check every value that can be checked without the corpus. InputError: the first one that is wrong."""
        config = self.config
        seed = config.seed_everything
        if not 0 <= seed < 2**32:
            raise InputError(f"seed_everything is {seed}; it lies between 0 and {2**32 - 1}")
        if not 0 < config.rank_timeout <= 86400:
            raise InputError(f"rank_timeout is {config.rank_timeout:g}; it is above 0 and at most 86400 seconds")
        _check_trainer(config.trainer)
        if config.checkpoints.sharded and config.trainer.strategy != "fsdp2":
            raise InputError(
                f"checkpoints.sharded is true, but trainer.strategy is {config.trainer.strategy}, not fsdp2"
            )
        # Without a vocabulary the module checks its values and builds no network.
        small = self.parser.parse_object({"model": {"network": {"vocab_size": None}}}, config)
        made = self.parser.instantiate_classes(small)
        network = made.model.network
        shape = AttentionShape(network.width, network.heads, network.groups, network.head_dim, network.context)
        mechanism = build(config.model.attention, shape, config.model.backend)
        if mechanism.prefix_tokens and made.data.layout.documents == "masked":
            raise InputError(
                f"data.documents is masked, which {label(config.model.attention)} cannot do: its prefix token stands "
                "outside of every document; set data.documents to packed"
            )
        Stop(config.get("stop_after"))
        trainer = self._trainer(made, default_root_dir=".", logger=False)
        _check_ranks(trainer)
        if isinstance(trainer.strategy, FullySharded) and made.model.optimizer_config.name == "muon":
            raise InputError(SHARDED)
        split = Split(
            trainer.num_nodes,
            trainer.num_devices,
            type(trainer.strategy).__name__,
            made.data.batch_size,
            trainer.accumulate_grad_batches,
            made.data.context,
        )
        out = Path(config.out or default_out(self.words.configs, label(config.model.attention), seed))
        return Plan(self._plain(out), split, out, config.ckpt_path, config.get("stop_after"))

    def make(self, plan: Plan, ranks: Ranks | None = None) -> tuple[Trainer, LanguageModel, CorpusData, Stop]:
        """The objects of a run, seeded."""
        seed_everything(self.config.seed_everything, workers=True, verbose=False)
        made = self.parser.instantiate_classes(self.config)
        stop = Stop(plan.stop_after, ranks)
        ours = callbacks(RunDirectory(plan.out), made.evaluation, made.outliers, stop, made.checkpoints)
        name = f"{label(self.config.model.attention)} seed={self.config.seed_everything}"
        trainer = self._trainer(
            made,
            default_root_dir=plan.out,
            logger=loggers.build(self.config.loggers, plan.out, name) if self.command == "fit" else False,
            callbacks=[*(made.trainer.callbacks or []), *ours] if self.command == "fit" else None,
        )
        return trainer, made.model, made.data, stop

    def _trainer(self, made: Namespace, **arguments: Any) -> Trainer:
        options = {**made.trainer.as_dict(), **FIXED, "enable_progress_bar": False, **arguments}
        given = options.pop("accumulate_grad_batches")
        strategy = resolve(options["strategy"])
        if environment := cluster_environment():
            plugins = options["plugins"] or []
            options["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), environment]
        try:
            trainer = Trainer(**{**options, "strategy": strategy})
            if trainer.world_size == 1 and isinstance(strategy, FullySharded):  # nothing to shard
                trainer = Trainer(**{**options, "strategy": "auto"})
            if trainer.world_size > 1:
                trainer.strategy.cluster_environment.validate_settings(trainer.num_devices, trainer.num_nodes)
                trainer.strategy._timeout = timedelta(seconds=self.config.rank_timeout)
        except (MisconfigurationException, ValueError, TypeError) as error:
            machine = ", ".join(f"{name}: {options[name]}" for name in ("accelerator", "devices", "strategy"))
            raise InputError(f"trainer ({machine}): {' '.join(str(error).split())}") from error
        data, world = made.data, trainer.num_nodes * trainer.num_devices
        trainer.accumulate_grad_batches = accumulation(
            data.tokens_wanted, given, batch_size=data.batch_size, context=data.context, world=world
        )
        return trainer

    def _plain(self, out: Path) -> dict[str, Any]:
        """The configuration as config.yaml holds it: linked values left out, since they follow from the others."""
        text = self.parser.dump(self.config, format="yaml", skip_none=False, skip_link_targets=True)
        config = yaml.safe_load(text)
        # Another run's checkpoint to start from changes the result; one of this run's own only says where to go on.
        path = config["ckpt_path"]
        from_file = path not in (None, "last") and Path(path).resolve().parent != (out / "checkpoints").resolve()
        return {
            key: value
            for key, value in config.items()
            if key not in OF_THIS_START or (key == "ckpt_path" and from_file)
        }


def _check_ranks(trainer: Trainer) -> None:
    """InputError for more processes than a CPU bears: each takes half a GiB and is to answer within seconds."""
    cores = os.cpu_count() or 1
    most = max(8, 4 * cores)
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        raise InputError(
            f"trainer.devices is {trainer.num_devices} on a CPU, where each is a process; with {cores} cores it is at "
            f"most {most}"
        )


def _check_trainer(trainer: Namespace) -> None:
    """InputError for a number that Lightning takes and that trains nothing, or trains wrongly.

    An accumulation below 1 never completes a step, and a negative clipping value turns the gradients around.
    """
    for name in ("max_steps", "accumulate_grad_batches", "log_every_n_steps"):
        if trainer[name] is not None and trainer[name] < 1:
            raise InputError(f"trainer.{name} is {trainer[name]}; it is a whole number, 1 or more")
    if (trainer.strategy, trainer.precision) == ("fsdp2", "64-true"):
        raise InputError("trainer.precision is 64-true; under fsdp2 it is 32-true, bf16-mixed or bf16-true")
    clip = trainer.gradient_clip_val
    if clip is not None and not clip >= 0:
        raise InputError(f"trainer.gradient_clip_val is {clip}; it is the largest norm, above 0, or 0 or null for none")

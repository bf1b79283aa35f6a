"""`fit` and `validate`: from a command line to a run.

`check` resolves a command line and refuses what is wrong with it, without training and without touching the disk; `run`
trains in this process; `fit` and `validate` are the commands. All take what follows `train.py fit` on the command line.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import yaml

from errors import InputError
from models.checkpoints import description, load
from training.checkpoint_io import AtomicCheckpointIO, recover
from training.command_line import CommandLine, Plan
from training.data_module import CorpusData
from training.launch import TRAIN_PY, code_hash, joined, started
from training.quiet import quiet
from training.ranks import Ranks
from training.run_directory import RunDirectory, differences, flatten


def plan(argv: list[str]) -> Plan:
    """What a `fit` with these arguments would do; nothing is written or trained.

    InputError: the first thing that is wrong with it. The corpus is not looked at.
    """
    with quiet():
        return CommandLine("fit", argv).plan()


def check(argv: list[str]) -> dict[str, Any]:
    """The configuration that a `fit` with these arguments would write to config.yaml. InputError as in `plan`."""
    return plan(argv).config


def run(argv: list[str]) -> int:
    """`fit` in this process. Returns 0 when the run is finished or stopped as asked, 128 + n after signal n.

    The rule: the same configuration in the same directory goes on from its last checkpoint, a finished run is left
    alone, and another configuration there is an InputError that names the keys.
    """
    with quiet(), _as_command(argv), joined() as ranks:
        command = CommandLine("fit", argv)
        plan = command.plan()
        if ranks is not None and ranks.rank != 0:
            with started(ranks, plan.split, []):
                return _train(command, plan, ranks) if ranks.wait_for_rank_0() else 0
        if command.words.print_config:
            return _print(plan)
        directory = RunDirectory(plan.out)
        with directory.occupied():
            if directory.enter(plan.config, plan.split):
                print(f"{plan.out} is finished, {plan.config['trainer']['max_steps']} steps; another --out repeats it")
                return 0
            recover(directory.last_checkpoint, directory.previous_checkpoint)
            if plan.stop_after is not None and directory.last_checkpoint.exists():
                # Not status.json's step: a killed run was further than what it had saved.
                step = load(directory.last_checkpoint)["global_step"]
                if step >= plan.stop_after:
                    print(f"{plan.out} is at step {step} already")
                    return 0
            with started(ranks, plan.split, ["fit", *argv]) as ranks:
                return _train(command, plan, ranks)


def fit(argv: list[str]) -> int:
    """The command `fit`."""
    return _list_options("fit") if "--help.all" in argv else run(argv)


def validate(argv: list[str]) -> int:
    """The command `validate`: the validation loss of a checkpoint, of the run's last one unless another is given."""
    if "--help.all" in argv:
        return _list_options("validate")
    with quiet(), joined() as ranks:
        command = CommandLine("validate", argv)
        plan = command.plan()
        if command.words.print_config:
            return _print(plan) if ranks is None or ranks.rank == 0 else 0
        with started(ranks, plan.split, ["validate", *argv]) as ranks:
            if ranks is not None and ranks.rank and not ranks.wait_for_rank_0():
                return 0
            checkpoint = _checkpoint(plan)
            if checkpoint is not None:
                _same_network(checkpoint, plan.config["model"])
            trainer, model, data, _ = command.make(plan, ranks)
            data.prepare_data()
            if ranks is not None:
                ranks.agree(_start_of_a_rank(plan, checkpoint, data))
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
            (metrics,) = trainer.validate(model, data, ckpt_path=checkpoint, verbose=False)
        if not trainer.is_global_zero:
            return 0
    print(f"checkpoint                {checkpoint or 'none: initial weights'}")
    for name, value in metrics.items():
        print(f"{name:<26}{value:.6f}")
    return 0


def _train(command: CommandLine, plan: Plan, ranks: Ranks | None) -> int:
    directory, checkpoint = RunDirectory(plan.out), _start(plan)
    trainer, model, data, stop = command.make(plan, ranks)
    data.prepare_data()  # before the directory is written: a source that cannot be read leaves nothing behind
    if ranks is not None:
        ranks.agree(_start_of_a_rank(plan, checkpoint, data))
        if ranks.rank == 0:
            ranks.before_exit = lambda: directory.write_status("failed", trainer.global_step, trainer.max_steps)
    if trainer.is_global_zero:
        if data.tokens_wanted is not None:
            logging.getLogger("sinkless").info("%s", plan.split)
        directory.record(plan.config, list(sys.argv), trainer.strategy.root_device.type, plan.split)
    trainer.fit(model, data, ckpt_path=checkpoint)
    if trainer.is_global_zero:
        done = "finished" if trainer.global_step >= trainer.max_steps else "stopped and saved"
        if done == "finished":  # also where the process was killed after its last checkpoint, before it said so
            directory.write_status(done, trainer.global_step, trainer.max_steps)
        print(f"{done} at step {trainer.global_step} of {trainer.max_steps}: {plan.out}", flush=True)
    return stop.exit_code


def _start_of_a_rank(plan: Plan, checkpoint: Path | None, data: CorpusData) -> dict[str, Any]:
    """What the ranks of one run have in common, by name."""
    data.open()
    return flatten(plan.config) | {
        "--out": str(plan.out.absolute()),
        "--stop_after": plan.stop_after,
        "checkpoint": checkpoint and f"{checkpoint} ({checkpoint.stat().st_size} bytes)",
        "corpus": data.corpus.hash,
        "code": code_hash(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }


def _print(plan: Plan) -> int:
    print(yaml.safe_dump(plan.config, sort_keys=False, allow_unicode=True), end="")
    return 0


def _list_options(command: Literal["fit", "validate"]) -> int:
    parser = CommandLine(command, []).parser
    parser.usage = f"train.py {command} --config FILE [--NAME.OPTION VALUE ...]"
    parser.print_help()
    return 0


def _checkpoint(plan: Plan) -> Path | None:
    """The file that `--ckpt_path` names. InputError: there is none."""
    if plan.checkpoint is None:
        return None
    last = RunDirectory(plan.out).last_checkpoint
    path = last if plan.checkpoint == "last" else Path(plan.checkpoint)
    if not path.exists():
        raise InputError(f"--ckpt_path {plan.checkpoint}: there is no checkpoint {path}")
    return path


def _start(plan: Plan) -> Path | None:
    """The checkpoint that `fit` goes on from; None for a new run.

    Once a run that began from another run's file has a checkpoint of its own, it goes on from that one.
    """
    last, named = RunDirectory(plan.out).last_checkpoint, _checkpoint(plan)
    own = last if last.exists() else None
    if named is None or (own and named.resolve().parent != last.resolve().parent):
        return own
    step, steps = _same_network(named, plan.config["model"]), plan.config["trainer"]["max_steps"]
    if own is None and step >= steps:
        raise InputError(f"checkpoint {named} is at step {step}, and trainer.max_steps is {steps}: nothing is left")
    return named


def _same_network(checkpoint: Path, model: dict[str, Any]) -> int:
    """The step of a checkpoint. InputError where its weights belong to another network than the configuration's."""
    content = load(checkpoint)
    saved = description(content, checkpoint)
    there, here = ({"model": {key: source[key] for key in ("attention", "network")}} for source in (saved, model))
    if here["model"]["network"]["vocab_size"] is None:
        there["model"]["network"]["vocab_size"] = None
    if lines := differences(there, here):
        raise InputError(f"checkpoint {checkpoint} is of another network: {'; '.join(lines[:4])}")
    return content["global_step"]


@contextmanager
def _as_command(argv: list[str]) -> Iterator[None]:
    """`sys.argv` as the command line would have it: environment.json keeps it."""
    before = sys.argv
    sys.argv = [str(TRAIN_PY), "fit", *argv]
    try:
        yield
    finally:
        sys.argv = before

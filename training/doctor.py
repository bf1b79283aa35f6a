"""`python train.py doctor`: whether this machine, and every rank of a run, can do what `fit` would ask of it.

It takes fit's options and is started as fit would be (also by torchrun or srun), so that it looks at the machine that
fit would get. `--devices N` is short for `--trainer.devices N`.
"""

import os
import platform
import shutil
import tempfile
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from packaging.requirements import Requirement

from errors import InputError
from kernels import Parts
from kernels.backends import BACKENDS, obstacle
from training import compilation
from training.command_line import CommandLine, Plan
from training.launch import TRAIN_PY, code_hash, joined, started
from training.peaks import PEAKS
from training.quiet import quiet
from training.ranks import Ranks

SHORT = ("accelerator", "devices", "num_nodes", "strategy")
ANSWER = 120.0  # seconds in which every rank has to answer, and then to have summed
ELEMENTS = 1 << 20  # of the tensor that is summed over the ranks: 4 MiB
LEAST_SPACE = 1 << 30  # bytes: less on the disk is worth a warning

HELP = """\
usage: python train.py doctor [--config FILE] [--devices N] [--NAME.OPTION VALUE ...]

Check versions, devices, compiler and disk, and sum a tensor over the ranks that fit would start with these options.
Under torchrun or srun, as fit would be. Exit code 0 where all is well, 1 where something is not, 2 for bad input.

  --devices N, --num_nodes N, --strategy S, --accelerator A     short for --trainer.devices and so on
  --out DIR                     the run directory whose disk is looked at
"""


class Finding(NamedTuple):
    """One line of the table. well: None where it is only told."""

    name: str
    well: bool | None
    text: str


def main(argv: list[str]) -> int:
    """The command. 0: all is well, 1: something is not. InputError as for `fit`."""
    if {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    words = as_fit(argv)
    with quiet(), joined() as ranks:
        command = CommandLine("doctor", words)
        plan = command.plan()
        findings: list[Finding] = []
        if ranks is None or ranks.rank == 0:
            findings = _look(command, plan)
            for finding in findings:
                _show(finding)
        with started(ranks, plan.split, ["doctor", *words]) as ranks:
            trainer, *_ = command.make(plan)
            if ranks is not None:
                for finding in _sum(ranks, trainer):
                    findings.append(finding)
                    _show(finding)
        return 1 if any(finding.well is False for finding in findings) else 0


def as_fit(argv: list[str]) -> list[str]:
    """The command line with fit's names in the place of the short ones."""
    return [f"--trainer.{word[2:]}" if word[2:].split("=")[0] in SHORT else word for word in argv]


def _show(finding: Finding) -> None:
    mark = {True: "ok", False: "BAD", None: ""}[finding.well]
    print(f"{mark:<4} {finding.name:<12} {finding.text}", flush=True)


def _look(command: CommandLine, plan: Plan) -> list[Finding]:
    """What this process sees of its machine."""
    cuda = torch.cuda.is_available() and command.config.trainer.accelerator != "cpu"
    device = torch.device("cuda" if cuda else "cpu")
    return [*_versions(), *_devices(), *_attention(plan, device), _compiler(device), _disk(plan.out)]


def _versions() -> list[Finding]:
    """Python and the packages against what pyproject.toml asks for."""
    project = tomllib.loads(TRAIN_PY.with_name("pyproject.toml").read_text())["project"]
    python = Requirement(f"python{project['requires-python']}").specifier
    found = [Finding("python", python.contains(platform.python_version()), f"{platform.python_version()} ({python})")]
    for requirement in map(Requirement, project["dependencies"]):
        if requirement.name not in ("torch", "triton", "lightning"):
            continue
        if requirement.marker and not requirement.marker.evaluate():
            found.append(Finding(requirement.name, None, "not for this platform"))
            continue
        try:
            here = version(requirement.name)
        except PackageNotFoundError:
            found.append(Finding(requirement.name, False, f"not installed ({requirement.specifier})"))
            continue
        well = requirement.specifier.contains(here, prereleases=True)
        found.append(Finding(requirement.name, well, f"{here} ({requirement.specifier})"))
    return found


def _devices() -> list[Finding]:
    """The accelerators, or the cores where there are none."""
    if not torch.cuda.is_available():
        return [Finding("device", None, f"CPU, {os.cpu_count()} cores, torch threads {torch.get_num_threads()}")]
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        text = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
        text += "" if properties.name.removeprefix("NVIDIA ") in PEAKS else ", peak rate unknown: no MFU"
        found.append(Finding(f"device {index}", None, text))
    return found


def _attention(plan: Plan, device: torch.device) -> list[Finding]:
    """Which back ends of attention work for plain softmax in the run's precision."""
    network = plan.config["model"]["network"]
    size = network["width"] // network["heads"]
    precision = plan.config["trainer"]["precision"] or "32-true"
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    row = torch.empty(1, 1, 1, size, dtype=dtype, device=device)
    refused = {name: obstacle(name, row, row, Parts(), None) for name in BACKENDS if name != "auto"}
    works = ", ".join(name for name, reason in refused.items() if reason is None)
    found = [Finding("attention", None, f"{works} (head size {size}, {dtype})".replace("torch.", ""))]
    return found + [Finding("", None, f"not {name}: {reason}") for name, reason in refused.items() if reason]


def _compiler(device: torch.device) -> Finding:
    missing = compilation.obstacle(device)
    return Finding("compiler", None if missing else True, f"model.compile is off: {missing}" if missing else "works")


def _disk(out: Path) -> Finding:
    """Space, and whether a file can be made, where the run directory is or would be."""
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free in {folder}"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("disk", False, f"{folder} cannot be written: {error.strerror}")
    return Finding("disk", free >= LEAST_SPACE, text)


def _sum(ranks: Ranks, trainer: Trainer) -> list[Finding]:
    """On rank 0: whether every rank answers, and a tensor of ones, summed over all, is the number of ranks."""
    here = {"host": platform.node(), "pid": os.getpid(), "torch": torch.__version__, "code": code_hash()}
    found = []
    try:
        for rank, there in enumerate(ranks.gather("doctor", here, ANSWER, "it has not answered the doctor")):
            alike = (there["torch"], there["code"]) == (here["torch"], here["code"])
            text = f"{there['host']}, process {there['pid']}" + ("" if alike else ": other code or another torch")
            found.append(Finding(f"rank {rank}", alike, text))
        began = time.monotonic()
        faults = ranks.gather("summed", _fault_of_sum(trainer, ranks.world), 2 * ANSWER, "it has not summed")
    except InputError as error:  # what the doctor was asked, not a mistake of the user
        return [*found, Finding("ranks", False, str(error))]
    found += [Finding(f"rank {rank}", False, fault) for rank, fault in enumerate(faults) if fault]
    if faults and not any(faults):
        found.append(Finding("all-reduce", True, f"{ranks.world} ranks, {time.monotonic() - began:.1f} s"))
    return found


def _fault_of_sum(trainer: Trainer, world: int) -> str:
    """Join the process group as `fit` does and sum ones over all ranks; what went wrong, or an empty text."""
    trainer.strategy.setup_environment()
    ones = torch.ones(ELEMENTS, device=trainer.strategy.root_device)
    work = torch.distributed.all_reduce(ones, async_op=True)
    end = time.monotonic() + ANSWER
    while not work.is_completed():
        if time.monotonic() > end:
            return f"the sum over all ranks has not ended after {ANSWER:.0f} s"
        time.sleep(0.01)
    work.wait()
    return "" if bool((ones == world).all()) else f"ones summed over {world} ranks are not {world} everywhere"

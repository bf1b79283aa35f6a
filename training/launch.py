"""From one command to the ranks of a run: started here, by torchrun, or by SLURM's srun.

Started here, ranks 1, 2, ... are this command once more with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT,
as torchrun sets them. Lightning's own launcher is not used: it kills rank 0 where another one ends, with no word.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from errors import InputError
from training.ranks import Ranks
from training.split import Split

TRAIN_PY = Path(__file__).resolve().parent.parent / "train.py"
CODE = ("kernels", "models", "data", "outliers", "training")
LAUNCHED = "SINKLESS_LAUNCHED"  # marks the ranks that this module has started


@dataclass(frozen=True)
class Place:
    """Where this process stands among the ranks that somebody else has started; `by` is how the user started them."""

    rank: int
    world: int
    by: str


def place() -> Place | None:
    """This process's place; None where it is the only one so far."""
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return Place(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "torchrun")
    slurm = cluster_environment()
    if isinstance(slurm, SLURMEnvironment) and slurm.world_size() > 1:
        return Place(slurm.global_rank(), slurm.world_size(), "srun")
    return None


def cluster_environment() -> ClusterEnvironment | None:
    """How Lightning learns its rank; None where it finds out by itself. InputError: SLURM's settings are incomplete.

    Under SLURM Lightning would put a handler of its own on SIGUSR1, save where a step is half done, and requeue. A
    single task of an allocation starts its ranks itself.
    """
    if TorchElasticEnvironment.detect():
        return None
    if LAUNCHED in os.environ or os.environ.get("SLURM_NTASKS") == "1":
        return LightningEnvironment()
    if not SLURMEnvironment.detect():
        return None
    try:
        return SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:
        raise InputError(" ".join(str(error).split())) from None


@contextmanager
def joined() -> Iterator[Ranks | None]:
    """This process among the ranks that somebody else has started, before it reads its command line; else None."""
    here = place()
    if here is None or here.world == 1:
        yield None
        return
    slurm = cluster_environment() if here.by == "srun" else None
    try:
        address = (slurm.main_address, slurm.main_port) if slurm else _master()
    except (KeyError, ValueError):
        raise InputError("RANK and WORLD_SIZE are set, but MASTER_ADDR or MASTER_PORT is not") from None
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    prefix = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    with Ranks(here.rank, here.world, address, holds=here.rank == 0 and not agent, prefix=prefix).together() as ranks:
        yield ranks


@contextmanager
def started(ranks: Ranks | None, split: Split, command: Sequence[str]) -> Iterator[Ranks | None]:
    """The ranks of a run: `ranks` where they have been started already, or this process and new ones, or None for one.

    command: what follows train.py. InputError: fewer or more were started than the configuration asks for.
    """
    if ranks is not None or split.world == 1:
        if ranks is not None and ranks.world != split.world:
            raise InputError(
                f"{ranks.world} ranks were started, but trainer.devices × trainer.num_nodes is {split.devices} × "
                f"{split.nodes}; give the number on each node and the number of nodes"
            )
        yield ranks
        return
    if split.nodes > 1:
        raise InputError(f"trainer.num_nodes is {split.nodes}: start it with torchrun or srun on each node")
    ranks = Ranks(0, split.world, ("127.0.0.1", 0), holds=True)
    shared = {"WORLD_SIZE": str(split.world), "MASTER_ADDR": ranks.host, "MASTER_PORT": str(ranks.port), LAUNCHED: "1"}
    before = dict(os.environ)
    try:
        with ranks.together():
            for rank in range(1, split.world):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
                child = subprocess.Popen([sys.executable, str(TRAIN_PY), *command], env=before | shared | own)
                ranks.children.append(child)
            os.environ.update(shared, RANK="0", LOCAL_RANK="0", NODE_RANK="0")
            yield ranks
    finally:
        for name in (*shared, "RANK", "LOCAL_RANK", "NODE_RANK"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def _master() -> tuple[str, int]:
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def code_hash() -> str:
    """SHA-256 of all of our code that a run executes: ranks of another checkout must not train together."""
    root = TRAIN_PY.parent
    files = [root / "errors.py", *(file for folder in CODE for file in (root / folder).rglob("*.py"))]
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return found.hexdigest()[:16]

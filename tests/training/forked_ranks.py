"""Ranks of `train.py fit` as torchrun would start them, each forked from a server that has Lightning loaded."""

import multiprocessing
import os
import socket
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120


@dataclass
class Forked:
    """Running ranks and the files that they write their output to."""

    processes: list[BaseProcess]
    files: list[Path]

    def codes(self) -> list[int | None]:
        """The exit codes, once all have ended; None for one that has not within two minutes."""
        for process in self.processes:
            process.join(SECONDS)
        found = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return found

    def output(self) -> list[str]:
        """What each rank wrote."""
        return [file.read_text() for file in self.files]


def start(
    folder: Path, argvs: list[list[str]], constants: dict[str, float] | None = None, command: str = "fit"
) -> Forked:
    """One rank for each command line after `train.py COMMAND`, in `folder`. constants: of training.ranks, changed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.cli"])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{path}" if path else str(ROOT)  # the server does not get sys.path
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if path:
            os.environ["PYTHONPATH"] = path
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = Forked([], [folder / f"output.{rank}" for rank in range(len(argvs))])
    for rank, argv in enumerate(argvs):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(argvs), "MASTER_PORT": port}
        environment = {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
        if len(argvs) == 1:
            environment = {}
        arguments = (environment, folder, started.files[rank], [command, *argv], constants or {})
        started.processes.append(context.Process(target=_rank, args=arguments))
        started.processes[-1].start()
    return started


def _rank(environment: dict[str, str], folder: Path, file: Path, argv: list[str], constants: dict[str, float]) -> None:
    os.environ.update(environment, OMP_NUM_THREADS="1")
    os.chdir(folder)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    import train
    from training import ranks

    torch.set_num_threads(1)
    for name, value in constants.items():
        setattr(ranks, name, value)
    raise SystemExit(train.main(argv))

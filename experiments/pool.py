"""Many runs at once: processes from one forkserver that has Lightning loaded, signals passed on, failures gathered."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from experiments.arguments import threads_each
from experiments.progress import Progress, Standing
from training.run_directory import RunDirectory

if TYPE_CHECKING:
    from experiments.compare import Job

# Loading Lightning takes seconds; a process forked from one that has it starts at once.
PRELOAD = ["training.cli"]
ROOT = Path(__file__).resolve().parent.parent
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Active:
    """A run that is being trained: its process, when it began, and the step from which its pace is taken.

    `marked` is the time at which it was first seen beyond the step that it started from: starting up tells nothing
    about the pace of training.
    """

    job: "Job"
    process: BaseProcess
    began: float
    first_step: int
    marked: float | None = None


class Pool:
    """Runs jobs, at most `jobs` at once, each with an equal share of the cores."""

    def __init__(self, jobs: int):
        self.jobs = jobs
        self.threads = threads_each(jobs)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        _start_server()  # it loads while the caller checks its jobs
        self.received: int | None = None
        self.active: list[Active] = []

    def run(self, jobs: Sequence["Job"]) -> int:
        """Run what is not finished. Returns 0; 1 where a run failed; 2 where all that failed were refused their input;
        128 + n after signal n, when every run has stopped with its checkpoint."""
        waiting = [job for job in jobs if not job.finished]
        progress = Progress(len(jobs), len(jobs) - len(waiting), self.jobs)
        failures: list[tuple[Job, int]] = []
        before = {number: signal.signal(number, self._forward) for number in SIGNALS}
        try:
            with progress:
                while (waiting and self.received is None) or self.active:
                    while waiting and self.received is None and len(self.active) < self.jobs:
                        self.active.append(self._start(waiting.pop(0)))
                        if self.received is not None:
                            self._send(self.received)
                    connection.wait([active.process.sentinel for active in self.active], timeout=0.5)
                    for active in [a for a in self.active if not a.process.is_alive()]:
                        self.active.remove(active)
                        code = active.process.exitcode or 0
                        if code and self.received is None:
                            failures.append((active.job, code))
                        progress.ended(self._standing(active), code)
                    progress.show([self._standing(active) for active in self.active], waiting)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.received is not None:
            print("stopped; each run has kept its last checkpoint, and the same command goes on from there")
            return 128 + self.received
        for job, code in failures:
            print(f"failed: {job.name} ({_ending(code)}): {last_line(job.out / 'log.txt')}", file=sys.stderr)
            print(f"        its output: {job.out / 'log.txt'}", file=sys.stderr)
        return 0 if not failures else 2 if all(code == 2 for _, code in failures) else 1

    def _start(self, job: "Job") -> Active:
        job.out.mkdir(parents=True, exist_ok=True)
        status = RunDirectory(job.out).status()
        arguments = (list(job.argv), str(job.out / "log.txt"), self.threads)
        process = self.context.Process(target=train_here, args=arguments, name=job.name)
        process.start()
        return Active(job, process, time.monotonic(), status.step if status else 0)

    def _standing(self, active: Active) -> Standing:
        status, now = RunDirectory(active.job.out).status(), time.monotonic()
        step = max(active.first_step, status.step if status else 0)
        if active.marked is None and step > active.first_step:
            active.marked, active.first_step = now, step
        seconds = now - active.marked if active.marked is not None else 0.0
        return Standing(active.job, step, step - active.first_step, seconds, now - active.began)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._send(number)

    def _send(self, number: int) -> None:
        for active in self.active:
            if active.process.is_alive() and active.process.pid is not None:
                os.kill(active.process.pid, number)


def _start_server() -> None:
    """Start the process from which runs are forked, with SIGTERM blocked in it.

    A SIGTERM to the whole process group (`timeout`, a service manager) must not end it, because it tells us how the
    runs end. Blocked and not ignored, so that one sent to a run that is being forked waits until it is unblocked there.

    It learns our folder through the environment. Python 3.11 and 3.12 do not give it `sys.path`: with another working
    directory it would preload nothing, without a word, and every run would load Lightning again.
    """
    path = os.environ.get("PYTHONPATH")
    resource_tracker.ensure_running()  # here, because it unblocks SIGTERM when it starts
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{path}" if path else str(ROOT)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        del os.environ["PYTHONPATH"]
        if path:
            os.environ["PYTHONPATH"] = path


def train_here(argv: list[str], log: str, threads: int) -> None:
    """A run's process: its output into `log`, its share of the threads, and `fit`'s exit code."""
    # A group of its own: Ctrl-C reaches it once, through the parent, and not a second time from the terminal.
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    import train

    torch.set_num_threads(threads)
    code = train.main(["fit", *argv])
    sys.stdout.flush()
    sys.exit(code)


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"

"""What runs, what remains, and for how long: a live table on a terminal, a line now and then elsewhere."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.compare import Job

EVERY = 20.0  # seconds between lines where there is no terminal


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    step: of the run. taken, seconds: steps timed here, and their time. age: seconds since it was started here.
    """

    job: "Job"
    step: int
    taken: int
    seconds: float
    age: float


class Progress:
    """Counts runs and estimates the time left from the pace so far, apart for each comparison."""

    def __init__(self, total: int, finished: int, at_once: int):
        self.total, self.finished, self.at_once = total, finished, at_once
        self.failed = 0
        self.pace: dict[str, list[float]] = {}  # comparison -> [seconds, steps] of the runs that ended
        self._live: Any = None
        self._last = 0.0

    def __enter__(self) -> "Progress":
        if self.finished:
            print(f"{self.finished} of {self.total} runs are finished already")
        if sys.stdout.isatty() and self.finished < self.total:
            from rich.live import Live

            self._live = Live(refresh_per_second=2, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*problem)

    def ended(self, standing: Standing, code: int) -> None:
        """A run has ended with that exit code."""
        seconds_steps = self.pace.setdefault(standing.job.comparison, [0.0, 0.0])
        # A run too short to be seen on its way has its start-up in its pace.
        seconds_steps[0] += standing.seconds if standing.taken else standing.age
        seconds_steps[1] += standing.taken or standing.step
        self.finished += code == 0
        self.failed += code != 0
        word = "finished" if code == 0 else f"ended with code {code}"
        self._print(f"{standing.job.name} {word} after {duration(standing.age)}")

    def show(self, active: Sequence[Standing], waiting: Sequence["Job"]) -> None:
        """Say how things stand: at once on a terminal, every 20 seconds elsewhere."""
        left = self.left(active, waiting)
        remaining = f"about {duration(left)} left" if left is not None else "time left not known yet"
        summary = f"{self.finished} of {self.total} runs finished, {len(active)} running, {len(waiting)} waiting"
        summary += f"{f', {self.failed} failed' if self.failed else ''}; {remaining}"
        if self._live is not None:
            self._live.update(_table(summary, active))
        elif active and time.monotonic() - self._last > EVERY:
            self._last = time.monotonic()
            runs = ", ".join(f"{s.job.name} {s.step}/{s.job.steps}" for s in active)
            print(f"{summary}. Running: {runs}", flush=True)

    def left(self, active: Sequence[Standing], waiting: Sequence["Job"]) -> float | None:
        """Seconds left, or None before the first steps. A comparison not yet begun is taken at the others' pace."""
        pace = {key: list(value) for key, value in self.pace.items()}
        for standing in active:
            entry = pace.setdefault(standing.job.comparison, [0.0, 0.0])
            entry[0] += standing.seconds
            entry[1] += standing.taken
        known = {key: seconds / steps for key, (seconds, steps) in pace.items() if steps}
        if not known:
            return None
        usual = sum(known.values()) / len(known)
        work = sum((s.job.steps - s.step) * known.get(s.job.comparison, usual) for s in active)
        work += sum(job.steps * known.get(job.comparison, usual) for job in waiting)
        longest = max(((s.job.steps - s.step) * known.get(s.job.comparison, usual) for s in active), default=0.0)
        return max(work / self.at_once, longest)

    def _print(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, highlight=False)
        else:
            print(line, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def _table(summary: str, active: Sequence[Standing]) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for standing in active:
        bar = ProgressBar(total=max(1, standing.job.steps), completed=standing.step, width=30)
        grid.add_row(standing.job.name, bar, f"{standing.step}/{standing.job.steps} steps")
    return Group(grid, summary)


class Countdown:
    """One line for a list of steps of about equal length: which one runs, how many are done, the time left.

    On a terminal the line is rewritten, elsewhere another one follows every 20 seconds. Standard error.
    """

    def __init__(self, title: str):
        self.title = title
        self._started = time.monotonic()
        self._last = -math.inf
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> "Countdown":
        return self

    def __exit__(self, *problem: Any) -> None:
        if self._terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)

    def show(self, name: str, done: int, total: int) -> None:
        """The step `name` begins, after `done` of `total`."""
        now = time.monotonic()
        if not self._terminal and now - self._last < EVERY:
            return
        self._last = now
        left = f", about {duration((now - self._started) / done * (total - done))} left" if done else ""
        line = f"{self.title}: {done} of {total} done{left}; now {name}"
        print(
            f"\r\x1b[2K{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

"""Time spent training, without what is measured beside it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Counts all seconds and, apart from them, those of pauses (evaluation, probes, checkpoints).

    `before` is what earlier starts of the same run took, so that a resumed run's clock goes on.
    """

    def __init__(self) -> None:
        self.before = 0.0
        self.paused = 0.0
        self._start = time.monotonic()

    def start(self, before: float = 0.0) -> None:
        """Begin at `before` seconds."""
        self.before, self.paused, self._start = before, 0.0, time.monotonic()

    def seconds(self) -> float:
        """All seconds since the run's first start, pauses included."""
        return self.before + time.monotonic() - self._start

    def training_seconds(self) -> float:
        """Seconds of this start, pauses excluded."""
        return time.monotonic() - self._start - self.paused

    def left(self, done: int, remaining: int) -> float:
        """Seconds until `remaining` steps are done, pauses included, at the pace of the `done` steps of this start."""
        return (time.monotonic() - self._start) / done * remaining

    @contextmanager
    def pause(self) -> Iterator["Pause"]:
        """Count what happens inside as a pause; the yielded object tells its length afterwards."""
        pause, begin = Pause(), time.monotonic()
        try:
            yield pause
        finally:
            pause.seconds = time.monotonic() - begin
            self.paused += pause.seconds


class Pause:
    """One pause; `seconds` is set when it ends."""

    seconds = 0.0

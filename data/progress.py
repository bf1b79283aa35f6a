"""Progress of a long preparation: a bar on a terminal, an occasional line in a log. Both go to standard error."""

import sys
import time
from typing import TextIO

_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 15.0
_WIDTH = 24


class Progress:
    """Counts bytes read and tokens written. `total` is the number of bytes to come, None where unknown."""

    def __init__(self, title: str, total: int | None, *, shown: bool = True, stream: TextIO | None = None):
        self.title, self.total, self.shown = title, total, shown
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.read = self.tokens = self.earlier = 0
        self.started = self.last = time.monotonic()

    def go_on(self, read: int) -> None:
        """Begin behind bytes that an earlier process has read."""
        self.read = self.earlier = read

    def add(self, read: int, tokens: int) -> None:
        """Count, and show where it is time to."""
        self.read += read
        self.tokens += tokens
        now = time.monotonic()
        if self.shown and now - self.last >= (_TERMINAL_SECONDS if self.terminal else _LOG_SECONDS):
            self.last = now
            self._show(self.line(now - self.started))

    def line(self, seconds: float) -> str:
        """One line: share done, tokens, tokens a second, time left (all that is known)."""
        parts = [f"{self.title}:"]
        if self.total:
            done = min(1.0, self.read / self.total)
            if self.terminal:
                filled = round(done * _WIDTH)
                parts.append("[" + "#" * filled + "." * (_WIDTH - filled) + "]")
            parts.append(f"{done:4.0%}")
        rate = self.tokens / max(seconds, 1e-9)
        parts.append(f"{self.read / 1e6:.1f} MB, {self.tokens / 1e6:.2f} M tokens, {rate:,.0f} tokens/s")
        if self.total and self.read > self.earlier:
            left = seconds * max(0, self.total - self.read) / (self.read - self.earlier)
            parts.append(f", {_duration(left)} left")
        return " ".join(parts).replace(" ,", ",")

    def say(self, what: str, leave: bool = False) -> None:
        """Name the next phase; speed and time left are counted from here. leave: the line stays, others draw below."""
        self.started = time.monotonic()
        if self.shown:
            self._show(f"{self.title}: {what}")
            if leave and self.terminal:
                self.stream.write("\n")
                self.stream.flush()

    def _show(self, line: str) -> None:
        self.stream.write(f"\r\x1b[2K{line}" if self.terminal else f"{line}\n")
        self.stream.flush()

    def finish(self, message: str) -> None:
        """Replace the bar by a last line."""
        if self.shown:
            self._show(message)
            if self.terminal:
                self.stream.write("\n")


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"

"""Timing that can be trusted on a shared machine: candidates take turns, medians are compared within one run.

A machine's speed drifts by tens of per cent over minutes, so absolute times of separate runs say little. Every round
here times each candidate once, in an order that rotates, and a ratio is the median over rounds of the ratio within a
round.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds a call of one candidate, one entry a round."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the rounds, in seconds."""
        return statistics.median(self.seconds)

    def speed_ratio(self, other: "Timing") -> float:
        """How many times as fast as `other` this is: the median over rounds of other's time over this one's."""
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


def synchronise() -> None:
    """Wait for the accelerator where there is one; a CPU call has finished when it returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def take_turns(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 9,
    calls: int = 1,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every candidate `rounds` times, in rotating order; a time is the mean of `calls` consecutive calls.

    clock: seconds; `time.process_time` counts this process's CPU time alone (for one thread, without an accelerator).
    """
    if rounds < 1 or calls < 1:
        raise ValueError(f"rounds {rounds} and calls {calls} must be at least 1")
    for call in candidates.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            shift = turn % len(order)
            for name in order[shift:] + order[:shift]:
                synchronise()
                start = clock()
                for _ in range(calls):
                    candidates[name]()
                synchronise()
                seconds[name].append((clock() - start) / calls)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(name, tuple(values)) for name, values in seconds.items()}


def clock_argument(parser: argparse.ArgumentParser) -> None:
    """Add --cpu-time, which sets `clock` to the process's CPU time in the place of the wall's."""
    parser.add_argument(
        "--cpu-time",
        dest="clock",
        action="store_const",
        const=time.process_time,
        default=time.perf_counter,
        help="count this process's CPU time, for a machine that does other work too (one thread, no accelerator)",
    )


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """One aligned text table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "  ".join([cells[0].ljust(widths[0]), *padded[1:]]).rstrip()

    return "\n".join([title, line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def machine() -> str:
    """What the figures were measured on: device, threads and versions, in one line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return f"{device}; torch {torch.__version__}"
